"""Writes that must reach etcd in the end: tried until they do, through any outage, while the agent lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from instep.agent.space import Space
from instep.coordination.keys import Keys
from instep.coordination.outage import Outage
from instep.coordination.records import Decision
from instep.coordination.transactions import Txn, abort
from instep.errors import EtcdDenied, EtcdError, EtcdFull, InstepError
from instep.etcd import Client, Compare, KeyValue, Listing, Op, TxnResult
from instep.tasks import Background

log = logging.getLogger("instep")

T = TypeVar("T")

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
DENIED_PAUSE_S = 5.0
"""A missing permission is granted by people, while the run continues."""
ATTEMPT_S = 2.0


@dataclass(slots=True)
class Wanted:
    """What one key is to hold, and who waits for that."""

    value: str | None
    waiting: list[Callable[[], None]] = field(default_factory=list)


class Effects:
    """Runs writes in the background. Each is idempotent by its own compares, so a lost reply is settled by sending it
    again; `drain` waits for those under way.

    Promise: what is given to `keep` for one key is written in that order, also where a request arrives late: the last
    value stands. Limit: other writes have no order.
    """

    def __init__(self, client: Client, keys: Keys, space: Space) -> None:
        self._client = client
        self._keys = keys
        self._space = space
        self._tasks = Background("a write")
        self._settling: set[int] = set()
        self._wanted: dict[str, Wanted] = {}
        self._outage = Outage("a write that must be made waits")

    def __repr__(self) -> str:
        return f"Effects({len(self._tasks)} under way, settling {sorted(self._settling)})"

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work)

    def write(self, txn: Txn, then: Callable[[], None] = lambda: None) -> None:
        """Sends the txn until etcd has answered it, whatever the answer; then calls `then`."""
        self.start(self._write(txn, then))

    def keep(self, key: str, value: str | None) -> None:
        """Makes `value` what `key` holds, None for no key. A value that is replaced before its turn is passed over."""
        wanted = self._wanted.get(key)
        if wanted is not None:
            wanted.value = value
            return
        self._wanted[key] = Wanted(value)
        self.start(self._keep(key))

    def when_kept(self, key: str, then: Callable[[], None]) -> None:
        """Calls `then` once etcd holds what was given to `keep` for this key: at once if it does already."""
        wanted = self._wanted.get(key)
        if wanted is None:
            then()
        else:
            wanted.waiting.append(then)

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
        await self._tasks.settle(timeout_s)
        await self._tasks.close()

    async def _write(self, txn: Txn, then: Callable[[], None]) -> None:
        await self.insist(lambda: self._send(txn))
        then()

    async def _keep(self, key: str) -> None:
        wanted = self._wanted[key]
        written, revision = False, 0
        try:
            while not written:
                value = wanted.value
                found = await self.insist(partial(self._replace, key, value, revision))
                revision, held = (found.mod_revision, found.text) if found is not None else (0, None)
                written = held == value == wanted.value
        finally:
            del self._wanted[key]
        for then in wanted.waiting:
            then()

    async def _replace(self, key: str, value: str | None, revision: int) -> KeyValue | None:
        """What the key holds after one attempt to replace what was written at `revision`, 0 for no key.

        The revision is compared, so a request that arrives after a later one changes nothing.
        """
        op = Op.put(key, value) if value is not None else Op.delete(key)
        read = Op.get(key)
        try:
            txn = Txn((Compare.mod_revision(key, "==", revision),), (op, read))
            listing = (await self._send(txn, (read,))).results[-1]
        except EtcdFull:
            if value is not None:
                raise
            await self._client.delete(key, timeout_s=ATTEMPT_S)  # a full database may refuse each txn, but it deletes
            return None
        return listing.kvs[0] if isinstance(listing, Listing) and listing.kvs else None

    async def _settle(self, number: int, decision: Decision, tell: Callable[[Decision], None]) -> None:
        try:
            try:
                stands = await self._abort(number, decision)
            except EtcdFull:
                stands = await self._abort_without_space(number, decision)
        finally:
            self._settling.discard(number)
        tell(stands)

    async def _abort(self, number: int, decision: Decision) -> Decision:
        """The decision that stands afterwards. Raises EtcdFull.

        Where there is neither a plan nor a decision somebody has deleted them, a commit maybe: nobody guesses, they are
        waited for, and the rank's own patience ends that.
        """
        read = Op.get(self._keys.decision(number))
        txn = abort(self._keys, number, decision)
        missing = Outage(f"plan {number} is not in etcd any more")
        while True:
            result = await self.insist(lambda: self._send(txn, (read,)), but=EtcdFull)
            if result.succeeded:
                log.info("plan %d is aborted: %s", number, decision.reason)
                return decision
            listing = result.results[0]
            if isinstance(listing, Listing) and listing.kvs:
                stands = Decision.decode_or_none(listing.kvs[0].value)
                if stands is not None:
                    missing.over()
                    return stands
            missing.met(EtcdError("its decision is waited for"))
            await asyncio.sleep(LONGEST_PAUSE_S / 2)

    async def _abort_without_space(self, number: int, decision: Decision) -> Decision:
        """A full database takes no abort, but it deletes: without its mark the plan cannot be committed any more. So a
        rank at the gate may go on at once, and the record follows when there is space.

        Not where the plan is gone too, as in `_abort`: who makes space by hand may have deleted a commit.
        """
        await self.insist(lambda: self._client.delete(self._keys.open_mark(number), timeout_s=ATTEMPT_S))
        missing = Outage(f"plan {number} is not in etcd any more")
        while True:
            is_there = await self.insist(lambda: self._is_there(number))
            stands = await self.insist(lambda: self._read_decision(number))
            if is_there or stands is not None:
                break
            missing.met(EtcdError("its decision is waited for"))
            await asyncio.sleep(LONGEST_PAUSE_S / 2)
        missing.over()
        if stands is None:
            log.info("plan %d cannot be committed any more: %s", number, decision.reason)
            self.write(abort(self._keys, number, decision))
        return stands or decision

    async def _look_up(self, number: int, tell: Callable[[Decision], None]) -> None:
        decision = await self.insist(lambda: self._read_decision(number))
        if decision is not None:
            tell(decision)

    async def _is_there(self, number: int) -> bool:
        return await self._client.get(self._keys.plan(number), timeout_s=ATTEMPT_S) is not None

    async def _read_decision(self, number: int) -> Decision | None:
        item = await self._client.get(self._keys.decision(number), timeout_s=ATTEMPT_S)
        return Decision.decode_or_none(item.value) if item is not None else None

    async def _send(self, txn: Txn, otherwise: tuple[Op, ...] = ()) -> TxnResult:
        result = await self._client.txn(txn.compares, txn.then, otherwise, timeout_s=ATTEMPT_S)
        self._outage.over()
        self._space.written()
        return result

    async def insist(self, attempt: Callable[[], Awaitable[T]], but: type[EtcdError] | tuple[()] = ()) -> T:
        """The result of the first attempt that does not fail; only a `but` ends it."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return await attempt()
            except InstepError as error:
                self._outage.met(error)
                if isinstance(error, EtcdError):
                    self._space.refused(error)
                if isinstance(error, but):
                    raise
                if isinstance(error, EtcdDenied):
                    pause_s = DENIED_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
