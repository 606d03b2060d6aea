"""Clients that contend for a lock and an election and meet at a barrier, on links that are cut like the agents'."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from chaos.clocked import Calls
from chaos.faults import TTL_S
from instep.coordination.barrier import DoubleBarrier
from instep.coordination.election import Election
from instep.coordination.fence import Fence
from instep.coordination.lock import Lock
from instep.coordination.session import Session
from instep.errors import BarrierTimeout, InstepError, LeaseLost, LockTimeout
from instep.etcd import Client, Op
from instep.testing.checkers import History, Hold, Passage

TIMEOUT_S = 2.0
WAIT_S = 8.0
TIDY_S = 1.0
"""Those who give up need another second to take their key away."""
LOOK_S = 0.03
LONGEST_HOLD_S = 1.0
LONG_HOLDS = 0.2
LONG_HOLD_S = 2.5 * TTL_S
"""Now and then one holds on for longer than a lease lasts: it must cease to believe when it cannot be renewed."""
CUT_OFF_HOLD_S = 4.0 * TTL_S
"""Whoever is cut off does not get its last write done, and holds on for so much longer at most, while it believes."""
PAUSE_S = 0.3
LINGERS_S = 15.0
"""How long a key that was given up may stand, with etcd away and its lease renewed by a change of etcd's leader."""
NO_ROUND = 0
"""Of an attempt to enter that failed: nobody was told which round it would have been."""


class Bystander:
    """One of `count`, each on a node of its own: a session, and a task each for lock, election and barrier.

    What it believed goes into `history`. What the lock and the election guard are keys: `resource/<name>` holds the
    token of the last write, each write in a txn that compares its fence.
    """

    def __init__(
        self, name: str, client: Client, prefix: str, history: History, calls: Calls, *, count: int, seed: int
    ) -> None:
        self.name = name
        self.holding: set[str] = set()
        """What it believes to hold."""
        self._client = client
        self._prefix = prefix
        self._history = history
        self._calls = calls
        self._count = count
        self._chance = random.Random(seed)

    def __repr__(self) -> str:
        return f"Bystander({self.name})"

    async def run(self) -> None:
        """Until cancelled. A first lease that cannot be had is asked for again."""
        while True:
            try:
                async with Session(self._client, ttl_s=TTL_S) as session, asyncio.TaskGroup() as group:
                    group.create_task(self._contend(session))
                    group.create_task(self._stand(session))
                    group.create_task(self._meet(session))
            except InstepError:
                await asyncio.sleep(PAUSE_S)

    async def _contend(self, session: Session) -> None:
        lock = Lock(self._client, session, f"{self._prefix}lock/", holder=self.name)
        while True:
            try:
                fence = await self._calls.timed("lock", WAIT_S + TIDY_S, lock.acquire(WAIT_S))
                await self._hold("lock", fence, lambda: lock.held)
                await self._calls.timed("unlock", TIMEOUT_S, lock.release())
            except (LockTimeout, InstepError):
                pass
            await self._pause()

    async def _stand(self, session: Session) -> None:
        election = Election(self._client, session, f"{self._prefix}election/")
        while True:
            try:
                campaign = asyncio.wait_for(election.campaign(self.name), WAIT_S)
                fence = await self._calls.timed("campaign", WAIT_S + TIDY_S, campaign)
                await self._hold("election", fence, lambda: election.leading)
                await self._calls.timed("resign", TIMEOUT_S, election.resign())
            except (TimeoutError, InstepError):
                pass
            await self._pause()

    async def _hold(self, name: str, fence: Fence, held: Callable[[], bool]) -> None:
        """Believes for a while, writes meanwhile, and notes until when it believed.

        Writing is a task beside it: one that waits for etcd must not keep it from looking whether it still believes.
        """
        acquired_at = believed_at = time.monotonic()
        long = self._chance.random() < LONG_HOLDS
        until = acquired_at + (LONG_HOLD_S if long else self._chance.uniform(0.05, LONGEST_HOLD_S))
        if not held():
            return
        written = [acquired_at]
        writing = asyncio.create_task(self._write_on(name, fence, written))
        self.holding.add(name)
        try:
            while believed_at < until or (written[0] < until and believed_at < until + CUT_OFF_HOLD_S):
                await asyncio.sleep(LOOK_S)
                looked_at = time.monotonic()
                if not held():
                    break
                believed_at = looked_at
        finally:
            self.holding.discard(name)
            writing.cancel()
            self._history.add(Hold(name, self.name, fence.token, acquired_at, believed_at))
            await asyncio.gather(writing, return_exceptions=True)

    async def _write_on(self, name: str, fence: Fence, written: list[float]) -> None:
        """Until cancelled; `written` holds the time of the last write that etcd has answered."""
        put = Op.put(f"{self._prefix}resource/{name}", f"{fence.token} {self.name}")
        while True:
            try:
                txn = self._client.txn([fence.compare()], [put], timeout_s=TIMEOUT_S)
                await self._calls.timed("fenced write", TIMEOUT_S, txn)
                written[:] = [time.monotonic()]
            except InstepError:
                pass
            await asyncio.sleep(LOOK_S)

    async def _meet(self, session: Session) -> None:
        barrier = DoubleBarrier(self._client, session, f"{self._prefix}barrier/", self._count)
        while True:
            await self._pause()
            entered_at = time.monotonic()
            try:
                entering = barrier.enter(self.name, WAIT_S)
                number = await self._calls.timed("enter", WAIT_S + TIDY_S, entering)
            except (InstepError, asyncio.CancelledError) as error:
                self._history.add(Passage("meeting", NO_ROUND, self.name, entered_at, lost_at=time.monotonic()))
                if isinstance(error, asyncio.CancelledError):
                    raise  # the session is over, but the others may have been let in with us
                continue
            await self._visit(barrier, number, entered_at)

    async def _visit(self, barrier: DoubleBarrier, number: int, entered_at: float) -> None:
        passed_at = time.monotonic()
        until = passed_at + self._chance.uniform(0.0, LONGEST_HOLD_S)
        left_at = gone_at = lost_at = None
        try:
            while time.monotonic() < until and barrier.inside:  # noqa: ASYNC110  # looked at, as users do
                await asyncio.sleep(LOOK_S)
            if not barrier.inside:
                lost_at = time.monotonic()
            left_at = time.monotonic()
            await self._calls.timed("leave", WAIT_S + TIDY_S, barrier.leave(WAIT_S))
            gone_at = time.monotonic()
        except (BarrierTimeout, LeaseLost, InstepError):
            lost_at = lost_at or time.monotonic()
        finally:
            passage = Passage("meeting", number, self.name, entered_at, passed_at, left_at, gone_at, lost_at)
            self._history.add(passage)

    async def _pause(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.0, 2 * PAUSE_S))


def with_rounds(passages: Sequence[Passage]) -> list[Passage]:
    """What the barrier's limits allow, made explicit for its checker.

    One whose session ends, or who gives up while etcd is away, may be counted in until its key is gone: while its call
    of enter lasted, and a while after it failed, it counts in the rounds that were opened without it. Whoever lost its
    lease inside has left when etcd says so, which may be before it knows: nobody need have waited for it.
    """
    known = [
        replace(passage, lost_at=passage.passed_at) if passage.lost_at is not None else passage
        for passage in passages
        if passage.round != NO_ROUND
    ]
    opened: dict[int, float] = {}
    for passage in known:
        if passage.passed_at is not None:
            opened[passage.round] = min(passage.passed_at, opened.get(passage.round, passage.passed_at))
    inside = {(passage.round, passage.who) for passage in known}
    found = list(known)
    for passage in passages:
        until = passage.passed_at if passage.round != NO_ROUND else (passage.lost_at or 0.0) + LINGERS_S
        found += [
            Passage(passage.barrier, number, passage.who, passage.entered_at, lost_at=until)
            for number, at in opened.items()
            if passage.entered_at <= at <= (until or 0.0) and (number, passage.who) not in inside
        ]
    return found
