"""Writes that must reach etcd in the end: tried until they do, through any outage, while the agent lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from instep.coordination.keys import Keys
from instep.coordination.records import Decision
from instep.coordination.transactions import Txn, abort
from instep.errors import EtcdUnavailable, InstepError
from instep.etcd import Client, Listing, Op, TxnResult

log = logging.getLogger("instep")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
ATTEMPT_S = 2.0


class Effects:
    """Runs writes in the background. Each is idempotent by its own compares, so a lost reply is settled by sending it
    again; `drain` waits for those under way."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._tasks: set[asyncio.Task[None]] = set()
        self._settling: set[int] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def write(self, txn: Txn) -> None:
        """Sends the txn until etcd has answered it, whatever the answer."""
        self.start(self._write(txn))

    def settle(self, number: int, decision: Decision, tell: Callable[[Decision], None]) -> None:
        """Tries to make `decision` that of plan `number`; then tells the one that stands. A second call for the same
        plan joins the first."""
        if number not in self._settling:
            self._settling.add(number)
            self.start(self._settle(number, decision, tell))

    def look_up(self, number: int, tell: Callable[[Decision], None]) -> None:
        """Tells the decision of plan `number` if there is one."""
        self.start(self._look_up(number, tell))

    async def drain(self, timeout_s: float) -> None:
        """Waits for what is under way, then gives up on the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self, txn: Txn) -> None:
        await self._insist(txn, ())

    async def _settle(self, number: int, decision: Decision, tell: Callable[[Decision], None]) -> None:
        try:
            result = await self._insist(abort(self._keys, number, decision), (Op.get(self._keys.decision(number)),))
        finally:
            self._settling.discard(number)
        if result.succeeded:
            log.info("plan %d is aborted: %s", number, decision.reason)
            tell(decision)
            return
        listing = result.results[0]
        stands = Decision.decode_or_none(listing.kvs[0].value) if isinstance(listing, Listing) and listing.kvs else None
        # No decision and no plan: it is so old that the history has let go of it, and nobody can commit it any more.
        tell(stands or Decision(commit=False, reason="the plan is no longer in etcd"))

    async def _look_up(self, number: int, tell: Callable[[Decision], None]) -> None:
        result = await self._insist(Txn((), (Op.get(self._keys.decision(number)),)), ())
        listing = result.results[0]
        if isinstance(listing, Listing) and listing.kvs:
            decision = Decision.decode_or_none(listing.kvs[0].value)
            if decision is not None:
                tell(decision)

    async def _insist(self, txn: Txn, otherwise: tuple[Op, ...]) -> TxnResult:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await self._client.txn(txn.compares, txn.then, otherwise, timeout_s=ATTEMPT_S)
            except EtcdUnavailable as error:
                log.debug("a write waits for etcd: %s", error)
            except InstepError as error:
                log.error("etcd refuses a write that must be made: %s", error)
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a write failed", exc_info=task.exception())
