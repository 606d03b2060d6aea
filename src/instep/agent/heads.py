"""The decisions that the node's workers hold, and what happens when etcd has lost some of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from instep.agent.context import Component, Context
from instep.agent.retrying_writer import ATTEMPT_S
from instep.protocol.chain import HeadStatus, head_status
from instep.protocol.records import Epoch, Held
from instep.protocol.recovery import NO_EPOCH_LEFT, epoch_after, explain
from instep.protocol.transactions import raise_epoch
from instep.wire.messages import NewEpoch

log = logging.getLogger("instep")


class Heads(Component):
    """Promise: after any agent has noticed that etcd's history went back, this node registers what its workers hold in
    the new epoch, and writes what etcd has lost of it to etcd, for the leader to restore.

    `on_epoch(epoch)` is called when an epoch begins while workers of this node train, when it turns out that it cannot
    be settled, and when it is settled.
    """

    def __init__(
        self, context: Context, *, register: Callable[[], Coroutine[Any, Any, None]], on_epoch: Callable[[Epoch], None]
    ) -> None:
        super().__init__(context)
        self._key = context.keys.head_of(context.node)
        self._register = register
        self._on_epoch = on_epoch
        self._known: int | None = None
        """The newest epoch that this agent has seen."""
        self._announced: Epoch | None = None
        """The epoch of the last call of `on_epoch`, while it is not settled."""
        self._written: tuple[str, int, int] | None = None
        """Digest, lease and epoch of the value under our key: etcd may have lost what was written in an earlier epoch.
        """
        self._writing = asyncio.Lock()
        self._raising = False
        context.client.history.listen(self._history_changed)

    def __repr__(self) -> str:
        return f"Heads(epoch {self._known}, {'raising it' if self._raising else self._written or 'nothing lost'})"

    @property
    def is_certain(self) -> bool:
        """Whether etcd holds the history in which this epoch began, as far as known."""
        return not self._raising

    def follow(self) -> None:
        """The run's state has changed, or a worker has connected."""
        self._meet_epoch()
        lost = self._lost()
        lease = self._session.lease_id
        mark = (lost.agreed.digest, lease, self._known or 0) if lost is not None and lease else None
        if mark is not None and self._written != mark:
            self._written = mark
            self._writer.start(self._write(lost, mark))
        elif lost is None and self._written is not None:
            self._written = None
            self._writer.start(self._write(None, None))

    def _meet_epoch(self) -> None:
        epoch = self._state.epoch
        number = epoch.number if epoch is not None else 0
        if self._raising:
            return
        known, self._known = self._known, number
        behind = [worker for worker in self._workers if worker.epoch < number]
        for worker in behind:
            worker.epoch = number
            worker.send(NewEpoch(number))
        if behind:
            self._writer.start(self._register())
        if epoch is not None:
            # This agent was started in an epoch: no worker enters a view before it is settled.
            trains = any(worker.view for worker in behind)
            is_new = number > known if known is not None else trains and not epoch.settled
            self._announce(epoch, is_new)

    def _announce(self, epoch: Epoch, is_new: bool) -> None:
        told = self._announced
        if is_new or (told is not None and (epoch.settled, epoch.problem) != (told.settled, told.problem)):
            self._announced = None if epoch.settled else epoch
            log.log(logging.INFO if epoch.settled else logging.WARNING, "%s", explain(epoch))
            self._on_epoch(epoch)

    def _lost(self) -> Held | None:
        """The newest decision that a worker of this node holds and etcd does not."""
        agreed = self._state.agreed
        held = [worker for worker in self._workers if worker.view and worker.agreed is not None]
        lost = [
            worker.agreed
            for worker in held
            if worker.agreed is not None
            and head_status(worker.agreed.plan, worker.agreed.digest, agreed) is not HeadStatus.IN_STEP
        ]
        if not lost:
            return None
        newest = max(lost, key=lambda item: item.plan)
        plans = (worker.plan for worker in held)
        plan = next((plan for plan in plans if plan is not None and plan.digest == newest.digest), None)
        return Held(agreed=newest, plan=plan)

    async def _write(self, held: Held | None, mark: tuple[str, int, int] | None) -> None:
        async def attempt() -> None:
            lease = self._session.lease_id
            if held is None:
                await self._client.delete(self._key, timeout_s=ATTEMPT_S)
            elif lease and self._written == mark:
                await self._client.put(self._key, held.encode(), lease=lease, timeout_s=ATTEMPT_S)

        async with self._writing:
            await self._writer.retry_until_done(attempt)

    # -- etcd has gone back -----------------------------------------------------------------------------------------

    def _history_changed(self) -> None:
        """Replaces the session's lease, because its keys may be part of the lost history."""
        log.warning(
            "etcd's history went back (%s): training continues; changes wait until all ranks report what they hold",
            self._client.history.reason,
        )
        self._written = None
        if not self._raising:
            self._raising = True
            self._writer.start(self._raise())

    async def _raise(self) -> None:
        """Starts the next epoch, unless another agent was faster."""
        try:
            await self._writer.retry_until_done(self._attempt)
        finally:
            self._raising = False
        self.follow()

    async def _attempt(self) -> None:
        known = max((worker.epoch for worker in self._workers), default=0)
        known = max(known, self._known or 0)
        while any(worker.view for worker in self._workers):
            item = await self._client.get(self._keys.epoch, timeout_s=ATTEMPT_S)
            current = Epoch.decode_or_none(item.value if item is not None else None)
            number = current.number if current is not None else 0
            if number > known:
                return
            history = self._client.history
            if current is not None and current.problem == NO_EPOCH_LEFT:
                return
            epoch = epoch_after(max(known, number), f"etcd's history went back: {history.reason}").model_copy(
                update={
                    "before": history.lost,
                    "after": history.revision,
                    "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                }
            )
            txn = raise_epoch(self._keys, item.mod_revision if item is not None else 0, epoch)
            await self._client.txn(txn.compares, txn.then, timeout_s=ATTEMPT_S)
