"""The node's part in leading the run: it stands in the election and serves the terms it wins."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from instep.agent.leadership import DryRunner, Leadership, Pace
from instep.agent.stall import Nomination, nominate
from instep.agent.state import RunState
from instep.agent.term_history import TermHistory
from instep.agent.workers import Workers
from instep.errors import EtcdDenied, EtcdError
from instep.etcd import Client
from instep.outage import Outage
from instep.protocol.keys import Keys
from instep.protocol.records import CAME_FIRST, Candidate, WorkerId
from instep.recipes.election import Election
from instep.recipes.fence import Fence
from instep.recipes.queue import in_order
from instep.recipes.retry import SERVICE, UNAVAILABLE, Retry
from instep.recipes.session import Session
from instep.tasks import all_of, first_of

log = logging.getLogger("instep")

NO_WORKER_S = 0.2
"""Pause of a term that begins while no worker is here."""
FAILED_TERM_S = 2.0
ENDS_KEPT = 100


class Candidacy:
    """A candidate names the worker that would lead. When that one goes, or shows no progress for `stall_timeout_s` or
    20 times its step time, whichever is longer, the key is replaced in one txn: a new key, a new token, at the end of
    the queue, and another may lead at once."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        session: Session,
        state: RunState,
        workers: Workers,
        node: str,
        *,
        pace: Callable[[], Pace],
        dry_runner: DryRunner,
        ttl_s: float,
        stall_timeout_s: float,
        former_lease: int = 0,
        on_denied: Callable[[EtcdDenied], None] = lambda error: None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._session = session
        self._state = state
        self._workers = workers
        self._node = node
        self._pace = pace
        self._dry_runner = dry_runner
        self._ttl_s = ttl_s
        self._stall_timeout_s = stall_timeout_s
        self._on_denied = on_denied
        self._terms = TermHistory(client, keys, state, workers, node)
        self._nomination: Nomination | None = None
        self._serving: Fence | None = None
        self._ends: dict[WorkerId, str] = {}
        self._election = Election(client, session, keys.election, former_lease=former_lease)
        self._lock = asyncio.Lock()
        self._leadership: Leadership | None = None
        self._outage = Outage("the candidate key cannot be written")
        self._failed = Retry(SERVICE, "this term of office ended")

    def __repr__(self) -> str:
        return f"Candidacy({self._leadership or self._election!r})"

    def wake(self) -> None:
        """The state has changed: a leader looks again."""
        if self._leadership is not None:
            self._leadership.wake()

    async def stand(self) -> None:
        """Makes our candidate key what it should be for the workers that are here now."""
        async with self._lock:
            try:
                await Retry(UNAVAILABLE, self._outage).run(self._stand)
            except EtcdError as error:
                self._outage.met(error)
                if isinstance(error, EtcdDenied):
                    self._on_denied(error)

    def ended(self, worker: WorkerId, how: str) -> None:
        """A worker has gone. Call it before `stand`: then who leads next can say how the one before it ended."""
        self._ends[worker] = how
        if len(self._ends) > ENDS_KEPT:
            del self._ends[next(iter(self._ends))]

    async def resign(self) -> None:
        """Lets the next candidate lead at once; if etcd is away, the lease's end does the same later."""
        with contextlib.suppress(EtcdError):
            await self._replace(self._election.resign(), "its agent was stopped")

    async def run(self) -> None:
        """Campaigns and leads, over and over, until cancelled."""
        while True:
            fence = await self._election.elected()
            try:
                await self._serve(fence)
            except EtcdError as error:
                if isinstance(error, EtcdDenied):
                    self._on_denied(error)
                await self._failed.failed(error)
            except Exception:  # an error in deciding ends a term, not the agent and its workers
                log.exception("this term of office ended with an error")
                await asyncio.sleep(FAILED_TERM_S)

    async def _serve(self, fence: Fence) -> None:
        self._serving = fence
        try:
            leader = await self._terms.proclaim(fence) if len(self._workers) else None
            if leader is None:
                await asyncio.sleep(NO_WORKER_S)
                return
            self._failed.succeeded()
            self._give_time(leader.worker)
            await self._state.informer.wait_listed()
            log.info("rank %d leads with token %d", leader.rank, leader.token)
            await self._lead(fence)
        finally:
            self._serving = None

    def _give_time(self, leader: WorkerId) -> None:
        """A new leader may wait for the one that it follows, so its time counts anew; not when it has had that."""
        worker, nomination = self._workers.of_id(leader), self._nomination
        if worker is not None and (nomination is None or leader not in nomination.passed):
            worker.excused_until = max(worker.excused_until, time.monotonic())

    async def _lead(self, fence: Fence) -> None:
        self._leadership = Leadership(
            self._client,
            self._keys,
            fence,
            self._state,
            pace=self._pace,
            dry_runner=self._dry_runner,
            ttl_s=self._ttl_s,
            on_denied=self._on_denied,
        )
        try:
            await first_of(self._leadership.run(), self._election.lost(fence))
        finally:
            self._leadership = None
            log.info("the term with token %d is over", fence.token)

    # -- the candidate ----------------------------------------------------------------------------------------------

    async def _stand(self) -> None:
        before, now = self._nomination, await self._nominated()
        worker = self._workers.of_id(now.worker) if now is not None else None
        if now is None or worker is None:
            await self._replace(self._election.resign(), self._end_of(before))
        elif not self._session.lease_id:
            return
        else:
            named = Candidate(node=self._node, **worker.id._asdict(), yielded=now.yielded)
            is_other = before is None or (before.worker, before.yielded) != (now.worker, now.yielded)
            standing = self._election.stand(str(worker.id), named.encode())
            await (self._replace(standing, self._end_of(before)) if is_other else standing)
        self._nomination = now

    async def _replace(self, change: Coroutine[Any, Any, None], why: str | None) -> None:
        """Lets go of the candidate that stood; if it leads, its successor finds word of why, where there is any."""
        leading = self._serving
        if leading is None:
            await change
            return
        if why is None:
            await change
        else:
            await all_of(self._terms.note_end(leading, why), change)  # the note is sent first
        if self._serving is leading:
            self._serving = None

    def _end_of(self, nomination: Nomination | None) -> str | None:
        if nomination is None:
            return None
        worker = self._workers.of_id(nomination.worker)
        if worker is None:
            return self._ends.get(nomination.worker)
        if not worker.view:
            return CAME_FIRST
        return f"it passed no step boundary for {worker.standing().silence_s(time.monotonic()):.0f} s"

    async def _nominated(self) -> Nomination | None:
        """Whether others could lead is asked only where it matters."""
        workers, now = [worker.standing() for worker in self._workers], time.monotonic()
        choose = partial(
            nominate,
            self._nomination,
            workers,
            now,
            timeout_s=self._stall_timeout_s,
            leads=self._serving is not None,
        )
        alone = choose(rivals=False)
        if choose(rivals=True) == alone:
            return alone
        return choose(rivals=await self._has_rivals())

    async def _has_rivals(self) -> bool:
        listing = await self._client.range(self._keys.election)
        standing = (Candidate.decode_or_none(item.value) for item in in_order(listing.kvs, self._keys.election))
        return any(other is not None and other.node != self._node and not other.yielded for other in standing)
