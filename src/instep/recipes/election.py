"""Leader election: the oldest candidate leads, and the create revision of its key is the fencing token."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from instep.errors import SettingsError
from instep.etcd import Client, KeyValue
from instep.recipes.fence import Fence
from instep.recipes.queue import Queue, in_order
from instep.recipes.retry import SERVICE, Retry
from instep.recipes.session import Session
from instep.tasks import first_of

NO_CANDIDATE_S = 0.2
"""Pause before the next look while this node has no candidate."""


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The leader at a moment in the past: the value that it campaigned with, and its fence."""

    value: str
    fence: Fence


@dataclass(frozen=True, slots=True, kw_only=True)
class ElectionStatistics:
    """Counts since the election was made."""

    won: int
    lost: int


def incumbent_of(entries: Mapping[str, KeyValue], prefix: str) -> Incumbent | None:
    """The oldest candidate."""
    queue = in_order(entries.values(), prefix)
    return Incumbent(queue[0].text, Fence(queue[0].key, queue[0].create_revision)) if queue else None


class Election:
    """One candidate in the election under `prefix`, on the session's lease.

    Promise: `campaign` returns the fence of the oldest candidate key while our lease was still valid after the last
    wait. Tokens rise from leader to leader, and etcd refuses a transaction with `fence.compare()` once another leads.
    Limit: everything else is true of the past. Two may believe at once that they lead, for as long as a reply travels.
    Nothing outside etcd is protected unless it refuses lower tokens. Check `leading` before each act: it is False as
    soon as the lease cannot be renewed ("suspended"), before another can lead. Give each task its own Election; cancel
    a campaign to give it up.
    """

    def __init__(self, client: Client, session: Session, prefix: str, *, former_lease: int = 0) -> None:
        """`former_lease`: as in Queue, for a candidate that replaces a process that died."""
        self._client = client
        self._session = session
        self._queue = Queue(client, session, prefix, former_lease=former_lease)
        self._fence: Fence | None = None
        self._lease_id = 0
        self._busy = False
        self._won = self._lost = 0

    def __repr__(self) -> str:
        return f"Election({f'token {self._fence.token}' if self._fence else 'not elected'}, {self._queue!r})"

    def statistics(self) -> ElectionStatistics:
        """Counts of terms won and lost. A snapshot."""
        return ElectionStatistics(won=self._won, lost=self._lost)

    # -- leading ----------------------------------------------------------------------------------------------------

    @property
    def fence(self) -> Fence | None:
        """The fence of the last term won; None after `resign`, and once `lost` has seen its end."""
        return self._fence

    @property
    def leading(self) -> bool:
        """Whether this candidate may act as leader: it is elected, and its lease is renewed in time."""
        session = self._session
        return self._fence is not None and session.lease_id == self._lease_id and session.link == "connected"

    async def campaign(self, value: str) -> Fence:
        """Enters the election with `value` and waits until elected. It waits while others lead, and through outages and
        lost leases: bound it with `asyncio.timeout`. If it is cancelled, or refused by etcd, no candidate is left.

        A leader gets its fence at once, and its value does not change.
        """
        if self._busy:
            raise SettingsError("This Election object is already in a campaign: give each task an Election of its own.")
        if self._fence is not None and self._queue.confirmed and self._session.lease_id == self._lease_id:
            return self._fence
        self._busy = True
        try:
            return self._elected(await self._queue.win(value))
        except BaseException:
            await self.resign()
            raise
        finally:
            self._busy = False

    async def lost(self, fence: Fence) -> None:
        """Returns when the term is over: its key is gone, or its lease can no longer be shown to be valid."""
        lease_id = self._lease_id
        retry = Retry(SERVICE, "the election's own candidate cannot be watched")
        await retry.run(lambda: first_of(self._queue.gone(fence), self._session.wait_lost(lease_id)))
        self._over(fence)

    async def resign(self) -> None:
        """Removes the candidate key, and the next candidate leads at once. Takes about a second at most; the session
        finishes it when etcd answers."""
        if self._fence is not None:
            self._over(self._fence)
        await self._queue.leave()

    # -- looking ----------------------------------------------------------------------------------------------------

    async def incumbent(self) -> Incumbent | None:
        """The current leader, by a linearizable read."""
        listing = await self._client.range(self._queue.prefix)
        return incumbent_of({item.key: item for item in listing.kvs}, self._queue.prefix)

    # -- for callers that decide when to enter ----------------------------------------------------------------------

    async def enter(self, name: str, value: str) -> None:
        """Creates the candidate key, and removes one with another name or value in the same transaction. Call it again
        after an error. Without a lease it does nothing."""
        await self._queue.enter(value, name)

    async def elected(self) -> Fence:
        """Waits until a candidate that `enter` has created is the oldest, through outages and refusals."""
        retry = Retry(SERVICE, "the election cannot be followed")
        while True:
            fence = await retry.run(self._queue.turn)
            if fence is not None:
                return self._elected(fence)
            if not self._queue.confirmed:
                await asyncio.sleep(NO_CANDIDATE_S)  # no lease, or no worker to name yet

    # -- inside -----------------------------------------------------------------------------------------------------

    def _elected(self, fence: Fence) -> Fence:
        if fence != self._fence:
            self._won += 1
        self._fence, self._lease_id = fence, self._queue.lease_id
        return fence

    def _over(self, fence: Fence) -> None:
        if self._fence == fence:
            self._fence = None
            self._lost += 1
