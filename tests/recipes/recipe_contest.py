"""Contenders for every recipe at once, each with its own client and session, and their records."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from recipe_support import T, station

from async_support import until
from instep.errors import EtcdUnavailable
from instep.etcd import Client, Op
from instep.recipes import Election, Fence, Group, Session
from instep.testing.checkers import Accepted, Hold

TTL_S = 6
CALL_S = 2.0
PATIENCE_S = 20.0
TIDY_S = 1.5
"""How much longer than its timeout a call may take: it tidies up for 1 s, on a busy machine."""


@dataclass
class Contest:
    """The contested keys and the recorded results."""

    endpoints: Sequence[str]
    over: bool = False
    holds: list[Hold] = field(default_factory=list)
    accepted: list[tuple[int, Accepted]] = field(default_factory=list)
    listings: int = 0
    slowest_s: float = 0.0
    leases_lost: int = 0

    def end(self) -> None:
        self.over = True

    async def continues(self) -> None:
        """Waits until another candidate has led, and the members were listed again."""
        before = self._had()
        await until(lambda: all(now > then for now, then in zip(self._had(), before, strict=True)))

    def _had(self) -> tuple[int, int]:
        return len(self.holds), self.listings

    def writes(self, name: str) -> list[Accepted]:
        """In the order in which etcd accepted them."""
        return [write for _, write in sorted(self.accepted, key=lambda item: item[0]) if write.name == name]

    async def candidate(self, who: str) -> None:
        async with station(self._turned(who), ttl_s=TTL_S, timeout_s=CALL_S) as (client, session):
            election = Election(client, session, "/contest/election")
            while not self.over:
                fence = await election.campaign(who)
                await self._use("election", who, client, session, fence, lambda: election.leading)
                await self._timed(election.resign(), 0)
            self.leases_lost += session.statistics().losses

    async def member(self, who: str) -> None:
        async with station(self._turned(who), ttl_s=TTL_S, timeout_s=CALL_S) as (client, session):
            group = Group(client, session, "/contest/group")
            await self._timed(group.join(who, timeout_s=PATIENCE_S), PATIENCE_S)
            while not self.over:
                assert group.joined
                with contextlib.suppress(EtcdUnavailable):
                    assert who in await self._timed(group.members(), CALL_S)
                    self.listings += 1
                await asyncio.sleep(0.2)  # a few requests a second are contest enough

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _use(
        self, name: str, who: str, client: Client, session: Session, fence: Fence, holding: Callable[[], bool]
    ) -> None:
        """Writes a few times while it believes that it holds the lock, each time guarded by the token."""
        acquired_at = until = time.monotonic()
        valid_until = acquired_at + session.remaining_s
        for _ in range(3):
            now, remaining_s = time.monotonic(), session.remaining_s
            if not holding():
                break
            until, valid_until = now, max(valid_until, now + remaining_s)
            try:
                result = await client.txn([fence.compare()], [Op.put(f"/contest/{name}-data", who)])
            except EtcdUnavailable:
                continue
            if result.succeeded:
                self.accepted.append((result.revision, Accepted(name, who, fence.token)))
        self.holds.append(Hold(name, who, fence.token, acquired_at, until, valid_until))

    async def _timed(self, call: Awaitable[T], limit_s: float) -> T:
        began = time.monotonic()
        try:
            return await call
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - began - limit_s)

    def _turned(self, who: str) -> list[str]:
        """Each contender begins at another member."""
        turn = ord(who[-1]) % len(self.endpoints)
        return [*self.endpoints[turn:], *self.endpoints[:turn]]
