"""Leader election among nodes: the oldest candidate leads, and its create revision is the fencing token.

After etcd's concurrency package (client/v3/concurrency/election.go): each candidate waits for the one before it only,
so a leader's death wakes one node and not all.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from instep.coordination.keys import Keys
from instep.coordination.session import Session
from instep.coordination.transactions import Fence
from instep.errors import InstepError
from instep.etcd import Client, Compare, Op

log = logging.getLogger("instep")

RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Candidacy:
    """Our key in the election. The value names the worker that would lead."""

    key: str
    value: str
    lease_id: int


class Election:
    """Promise: `campaign` returns with the token of the oldest candidate key while our lease was still valid after the
    last wait. Limit: that is true of the past; only a txn that compares the token is protected by it.
    """

    def __init__(self, client: Client, keys: Keys, session: Session) -> None:
        self._client = client
        self._keys = keys
        self._session = session
        self._candidacy: Candidacy | None = None

    def __repr__(self) -> str:
        return f"Election({self._keys.election}, {self._candidacy.key if self._candidacy else 'no candidate'})"

    async def stand(self, incarnation: str, value: str) -> None:
        """Creates our candidate key; one that stood for another worker goes in the same txn. Safe to repeat."""
        candidacy = Candidacy(self._keys.candidate(incarnation), value, self._session.lease_id)
        if candidacy == self._candidacy or not candidacy.lease_id:
            return
        then = [Op.put(candidacy.key, value, lease=candidacy.lease_id)]
        if self._candidacy is not None and self._candidacy.key != candidacy.key:
            then.append(Op.delete(self._candidacy.key))
        await self._client.txn([Compare.absent(candidacy.key)], then)
        self._candidacy = candidacy

    async def resign(self) -> None:
        """Takes our candidate key away, so that the next one leads at once."""
        candidacy, self._candidacy = self._candidacy, None
        if candidacy is not None:
            await self._client.delete(candidacy.key)

    async def campaign(self) -> Fence:
        """Waits until our candidate key is the oldest. Rides out outages; cancel it to stop waiting."""
        while True:
            try:
                fence = await self._lead_or_wait()
            except InstepError as error:
                log.warning("the election cannot be followed (%s)", error)
                await asyncio.sleep(RETRY_S)
                continue
            if fence is not None and self._session.valid:
                return fence
            if fence is not None:
                await asyncio.sleep(RETRY_S)  # etcd still holds the key of a lease that we cannot rely on

    async def lost(self, fence: Fence) -> None:
        """Returns when the candidate key that carried the token is gone."""
        while True:
            try:
                await self._wait_gone(fence.candidate, fence.token)
                return
            except InstepError as error:
                log.warning("our own candidate cannot be watched (%s)", error)
                await asyncio.sleep(RETRY_S)

    async def _lead_or_wait(self) -> Fence | None:
        listing = await self._client.range(self._keys.election)
        candidates = sorted(listing.kvs, key=lambda item: item.create_revision)
        ours = self._candidacy
        place = next((i for i, item in enumerate(candidates) if ours is not None and item.key == ours.key), None)
        if place is None and ours is self._candidacy:
            self._candidacy = None  # somebody deleted it, or its lease ended: stand again
        if place is None or ours is None:
            await asyncio.sleep(RETRY_S)  # not standing (no lease, or no worker yet)
            return None
        if place == 0:
            return Fence(ours.key, candidates[0].create_revision)
        before = candidates[place - 1]
        await self._wait_gone(before.key, before.create_revision)
        return None

    async def _wait_gone(self, key: str, create_revision: int) -> None:
        """Returns when the key is deleted, or is another one than that of `create_revision`."""
        async with self._client.watch(key, prefix=False) as watch:
            current = await self._client.get(key)
            if current is None or current.create_revision != create_revision:
                return
            async for batch in watch:
                for event in batch.events:
                    if event.kind == "delete" or event.kv.create_revision != create_revision:
                        return
