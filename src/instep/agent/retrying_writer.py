"""Writes that must reach etcd: retried through every outage, while the agent lives."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, TypeVar

from instep.errors import EtcdDenied, EtcdError, EtcdFull, InstepError
from instep.etcd import Client, Compare, KeyValue, Op, TxnResult
from instep.outage import Outage
from instep.protocol.chain import Promised, StoredPlan, Unknown, verdict
from instep.protocol.keys import Keys
from instep.protocol.records import Agreed, Decision, Epoch, Plan
from instep.protocol.transactions import Txn, abort
from instep.recipes.retry import WRITE, Retry
from instep.tasks import Background, all_of

log = logging.getLogger("instep")


T = TypeVar("T")
Items: TypeAlias = tuple[KeyValue | None, KeyValue | None, KeyValue | None, KeyValue | None]
"""A plan, its decision, the agreed values, and the epoch."""
UNDECIDED_S = 0.5
"""Pause before the next look at a plan whose decision is missing in etcd."""
ATTEMPT_S = 2.0


class QuotaMonitor:
    """Whether etcd's database has reached its quota. Reports that once, to the log and to `notify`, and once when it
    is over.

    Limit: it learns from writes that are made anyway. An agent with idle workers notices late.
    """

    def __init__(
        self,
        notify: Callable[[str], None],
        on_denied: Callable[[EtcdDenied], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._notify = notify
        self._on_denied = on_denied
        self._clock = clock
        self._since = 0.0
        self.problem: str | None = None
        """One sentence with the cure; None while etcd accepts writes."""

    def __repr__(self) -> str:
        return f"QuotaMonitor({self.problem or 'enough'})"

    def refused(self, error: InstepError) -> None:
        """A write has failed. A full database is reported; a missing permission is passed on."""
        if isinstance(error, EtcdDenied):
            self._on_denied(error)
        if not isinstance(error, EtcdFull) or self.problem is not None:
            return
        self.problem, self._since = str(error), self._clock()
        self._say(f"{error} Training continues with the agreed values; changes wait.")

    def written(self) -> None:
        """A write has succeeded."""
        if self.problem is None:
            return
        self.problem = None
        self._say(f"etcd accepts writes again, after {self._clock() - self._since:.0f} s")

    def _say(self, text: str) -> None:
        log.warning("%s", text)
        self._notify(text)


@dataclass(slots=True)
class Wanted:
    """The target value of one key, and the callbacks that wait for it."""

    value: str | None
    waiting: list[Callable[[], None]] = field(default_factory=list)


class RetryingWriter:
    """Runs writes in the background. Each is idempotent by its own comparisons: after a lost reply it is sent again.
    `drain` waits for those in progress.

    Promise: the values that `keep` gets for one key are written in that order, even if a request arrives late: the
    last value remains. Limit: other writes have no order.
    """

    def __init__(self, client: Client, keys: Keys, quota: QuotaMonitor) -> None:
        self._client = client
        self._keys = keys
        self._quota = quota
        self._tasks = Background("a write")
        self._settling: set[Promised] = set()
        self.is_certain: Callable[[], bool] = lambda: True
        """Whether etcd holds the known history: otherwise nothing is aborted, because it may have been committed
        there. Called after each read."""
        self._wanted: dict[str, Wanted] = {}
        self._outage = Outage("a required write waits")

    def __repr__(self) -> str:
        settling = sorted(item.number for item in self._settling)
        return f"RetryingWriter({len(self._tasks)} under way, settling {settling})"

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.start(work)

    def write(self, txn: Txn, then: Callable[[], None] = lambda: None) -> None:
        """Sends the transaction until etcd has answered, whatever the answer; then calls `then`."""
        self.start(self._write(txn, then))

    def keep(self, key: str, value: str | None) -> None:
        """Makes `value` the value of `key`; None deletes it. A value that is replaced before it is written is
        skipped."""
        wanted = self._wanted.get(key)
        if wanted is not None:
            wanted.value = value
            return
        self._wanted[key] = Wanted(value)
        self.start(self._keep(key))

    def when_kept(self, key: str, then: Callable[[], None]) -> None:
        """Calls `then` after etcd holds the last value that `keep` got for this key; immediately if it already does."""
        wanted = self._wanted.get(key)
        if wanted is None:
            then()
        else:
            wanted.waiting.append(then)

    def settle(self, promised: Promised, decision: Decision, then: Callable[[Decision], None]) -> None:
        """Tries to make `decision` the decision of the plan, then calls `then` with the actual one. A second call
        for the same plan joins the first."""
        if promised not in self._settling:
            self._settling.add(promised)
            self.start(self._settle(promised, decision, then))

    def look_up(self, promised: Promised, then: Callable[[Decision], None]) -> None:
        """Calls `then` with the decision of the plan, if there is one."""
        self.start(self._look_up(promised, then))

    async def drain(self, timeout_s: float) -> None:
        """Waits for the writes in progress and those that follow from them, then cancels the rest."""
        deadline = time.monotonic() + timeout_s
        while len(self._tasks) and (left_s := deadline - time.monotonic()) > 0:
            await self._tasks.settle(left_s)
        await self._tasks.close()

    async def _write(self, txn: Txn, then: Callable[[], None]) -> None:
        await self.retry_until_done(lambda: self._send(txn))
        then()

    async def _keep(self, key: str) -> None:
        wanted = self._wanted[key]
        written, revision = False, 0
        try:
            while not written:
                value = wanted.value
                found = await self.retry_until_done(partial(self._replace, key, value, revision))
                revision, held = (found.mod_revision, found.text) if found is not None else (0, None)
                written = held == value == wanted.value
        finally:
            del self._wanted[key]
        for then in wanted.waiting:
            then()

    async def _replace(self, key: str, value: str | None, revision: int) -> KeyValue | None:
        """The value of the key after one attempt to replace the value of `revision`, 0 for no key.

        The revision is compared: a request that arrives after a later one changes nothing.
        """
        op = Op.put(key, value) if value is not None else Op.delete(key)
        read = Op.get(key)
        try:
            txn = Txn((Compare.mod_revision(key, "==", revision),), (op, read))
            return (await self._send(txn, (read,))).found[-1]
        except EtcdFull:
            if value is not None:
                raise
            # A full database may refuse a transaction, but it deletes.
            await self._client.delete(key, timeout_s=ATTEMPT_S)
            return None

    async def _settle(self, promised: Promised, decision: Decision, then: Callable[[Decision], None]) -> None:
        try:
            final = await self._decided(promised, decision)
        finally:
            self._settling.discard(promised)
        then(final)

    async def _decided(self, promised: Promised, decision: Decision) -> Decision:
        """The plan's decision. An abort compares that the plan and the epoch are the promised ones.

        If etcd has neither the plan nor its decision, someone has deleted them, or etcd's history has gone back.
        Nothing is guessed: this waits until they return, or until what the ranks hold decides. The rank's own
        patience limits the wait.
        """
        missing = Outage(f"plan {promised.number} is no longer in etcd")
        while True:
            items = await self.retry_until_done(lambda: self._look(promised.number))
            found = verdict(promised, _found(items))
            if isinstance(found, Decision):
                missing.over()
                return found
            if found is Unknown.OPEN and self.is_certain():
                aborted = await self._abort(promised, items, decision)
                if aborted is not None:
                    return aborted
                continue
            missing.met(EtcdError("waiting for its decision"))
            await asyncio.sleep(UNDECIDED_S)

    async def _abort(self, promised: Promised, items: Items, decision: Decision) -> Decision | None:
        """None if something has changed since the read."""
        plan, _, _, epoch = items
        same = (
            Compare.mod_revision(self._keys.plan(promised.number), "==", plan.mod_revision if plan else 0),
            Compare.mod_revision(self._keys.epoch, "==", epoch.mod_revision if epoch else 0),
        )
        txn = abort(self._keys, promised.number, decision)
        try:
            result = await self.retry_until_done(
                lambda: self._send(Txn((*txn.compares, *same), txn.then)), but=EtcdFull
            )
        except EtcdFull:
            return await self._abort_without_space(promised, decision)
        if not result.succeeded:
            return None
        log.info("plan %d is aborted: %s", promised.number, decision.reason)
        return decision

    async def _abort_without_space(self, promised: Promised, decision: Decision) -> Decision | None:
        """Aborts the plan without space: a full database rejects the abort, but it deletes, and without its mark the
        plan cannot be committed. A rank at the gate continues at once; the record is written when there is space.

        Not if the plan is gone too, as in `_decided`: an operator who frees space may have deleted a commit.
        """
        number = promised.number
        await self.retry_until_done(lambda: self._client.delete(self._keys.open_mark(number), timeout_s=ATTEMPT_S))
        found = verdict(promised, _found(await self.retry_until_done(lambda: self._look(number))))
        if isinstance(found, Decision):
            return found
        if found is not Unknown.OPEN or not self.is_certain():
            return None
        log.info("plan %d can no longer be committed: %s", number, decision.reason)
        self.write(abort(self._keys, number, decision))
        return decision

    async def _look_up(self, promised: Promised, then: Callable[[Decision], None]) -> None:
        found = verdict(promised, _found(await self.retry_until_done(lambda: self._look(promised.number))))
        if isinstance(found, Decision) and self.is_certain():
            then(found)

    async def _look(self, number: int) -> Items:
        keys = self._keys
        wanted = (keys.plan(number), keys.decision(number), keys.agreed, keys.epoch)
        found = await all_of(*(self._client.get(key, timeout_s=ATTEMPT_S) for key in wanted))
        return found[0], found[1], found[2], found[3]

    async def _send(self, txn: Txn, otherwise: tuple[Op, ...] = ()) -> TxnResult:
        result = await self._client.txn(txn.compares, txn.then, otherwise, timeout_s=ATTEMPT_S)
        self._outage.over()
        self._quota.written()
        return result

    async def retry_until_done(self, attempt: Callable[[], Awaitable[T]], but: type[EtcdError] | tuple[()] = ()) -> T:
        """Returns the result of the first successful attempt. Raises `but`, and errors of an invalid request."""
        retry = Retry(WRITE, self._outage)
        while True:
            try:
                return await attempt()
            except EtcdError as error:
                self._quota.refused(error)
                if isinstance(error, but):
                    raise
                await retry.failed(error)


def _found(items: Items) -> StoredPlan:
    plan, decision, agreed, epoch = (item.value if item is not None else None for item in items)
    return StoredPlan(
        Plan.decode_or_none(plan),
        Decision.decode_or_none(decision),
        Agreed.decode_or_none(agreed),
        Epoch.decode_or_none(epoch),
    )
