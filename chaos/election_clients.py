"""Clients that campaign in a separate election, on links that are cut like those of the agents."""

from __future__ import annotations

import asyncio
import random
import time

from chaos.fault_plan import TTL_S
from chaos.timed_calls import TimedCalls
from instep.errors import InstepError
from instep.etcd import Client, Op
from instep.recipes.election import Election
from instep.recipes.fence import Fence
from instep.recipes.session import Session
from instep.testing.checkers import History, Hold

TIMEOUT_S = 2.0
WAIT_S = 8.0
TIDY_S = 1.0
"""A client that gives up needs another second to delete its key."""
LOOK_S = 0.03
LONGEST_HOLD_S = 1.0
LONG_HOLDS = 0.2
LONG_HOLD_S = 2.5 * TTL_S
"""Some holds last longer than a lease: the holder must stop believing when the lease cannot be renewed."""
CUT_OFF_HOLD_S = 4.0 * TTL_S
"""A client that is cut off cannot finish its last write; it holds at most this much longer, while it believes."""
PAUSE_S = 0.3
ELECTION = "election"


class ElectionClient:
    """A candidate with its own session and link.

    `history` records when it believed that it leads. The election guards the key `resource/election`: it
    holds the token of the last write, and each write is a txn that compares its fence.
    """

    def __init__(
        self, name: str, client: Client, prefix: str, history: History, calls: TimedCalls, *, seed: int
    ) -> None:
        self.name = name
        self.leads = False
        """Whether it believes that it leads."""
        self._client = client
        self._prefix = prefix
        self._history = history
        self._calls = calls
        self._chance = random.Random(seed)

    def __repr__(self) -> str:
        return f"ElectionClient({self.name})"

    async def run(self) -> None:
        """Runs until cancelled. Retries if it cannot get its first lease."""
        while True:
            try:
                async with Session(self._client, ttl_s=TTL_S) as session, asyncio.TaskGroup() as group:
                    group.create_task(self._stand(session))
            except InstepError:
                await asyncio.sleep(PAUSE_S)

    async def _stand(self, session: Session) -> None:
        election = Election(self._client, session, f"{self._prefix}{ELECTION}/")
        while True:
            try:
                campaign = asyncio.wait_for(election.campaign(self.name), WAIT_S)
                fence = await self._calls.timed("campaign", WAIT_S + TIDY_S, campaign)
                await self._hold(election, fence)
                await self._calls.timed("resign", TIMEOUT_S, election.resign())
            except (TimeoutError, InstepError):
                pass
            await self._pause()

    async def _hold(self, election: Election, fence: Fence) -> None:
        """Leads for a while, writes at the same time, and records until when it believed that it leads.

        A separate task writes: waiting for etcd must not delay the check whether it still leads.
        """
        acquired_at = believed_at = time.monotonic()
        long = self._chance.random() < LONG_HOLDS
        until = acquired_at + (LONG_HOLD_S if long else self._chance.uniform(0.05, LONGEST_HOLD_S))
        if not election.leading:
            return
        written = [acquired_at]
        writing = asyncio.create_task(self._write_on(fence, written))
        self.leads = True
        try:
            while believed_at < until or (written[0] < until and believed_at < until + CUT_OFF_HOLD_S):
                await asyncio.sleep(LOOK_S)
                looked_at = time.monotonic()
                if not election.leading:
                    break
                believed_at = looked_at
        finally:
            self.leads = False
            writing.cancel()
            self._history.add(Hold(ELECTION, self.name, fence.token, acquired_at, believed_at))
            await asyncio.gather(writing, return_exceptions=True)

    async def _write_on(self, fence: Fence, written: list[float]) -> None:
        """Runs until cancelled; `written` has the time of the last write that etcd has answered."""
        put = Op.put(f"{self._prefix}resource/{ELECTION}", f"{fence.token} {self.name}")
        while True:
            try:
                txn = self._client.txn([fence.compare()], [put], timeout_s=TIMEOUT_S)
                await self._calls.timed("fenced write", TIMEOUT_S, txn)
                written[:] = [time.monotonic()]
            except InstepError:
                pass
            await asyncio.sleep(LOOK_S)

    async def _pause(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.0, 2 * PAUSE_S))
