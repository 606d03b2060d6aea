"""Preemption of this node's workers: asks the run to save and stop on their behalf."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from instep.agent.context import Component, Context
from instep.agent.retrying_writer import ATTEMPT_S
from instep.agent.workers import LocalWorker
from instep.errors import EtcdError
from instep.etcd import Listing, Op
from instep.protocol import membership
from instep.protocol.keys import last_part
from instep.protocol.preemption import KnownRun, ask_to_stop
from instep.protocol.records import Command, Left, View, WorkerId
from instep.wire.messages import FromWorker, LostRanks, PreemptionNotice

log = logging.getLogger("instep")

AGAIN_S: Final = 5.0
"""After this time the command is written again if it is gone: someone may have deleted it."""
MAX_REASON: Final = 100
MAX_SUSPECTS: Final = 16


class PreemptionRelay(Component):
    """Promise: while a worker of the view that gave notice is here, the command that stops the run is kept in etcd
    until a stop is agreed on. It is one command, however many workers and nodes ask. The worker is notified of ranks
    that are gone."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._by_worker: dict[WorkerId, Command] = {}
        self._told: dict[WorkerId, tuple[int, ...]] = {}
        """By worker: the missing ranks that it was notified of."""
        self._dead: set[WorkerId] = set()
        self._absent: set[WorkerId] = set()
        self._looking = False
        self._asking = False
        self._asked_at = (0, 0)
        self._again_at = 0.0

    def __repr__(self) -> str:
        return f"PreemptionRelay({len(self._by_worker)} given{', asking' if self._asking else ''})"

    def handle(self, worker: LocalWorker, message: FromWorker) -> None:
        if not isinstance(message, PreemptionNotice):
            return
        if worker.id not in self._by_worker:
            author = f"rank {worker.rank} on {worker.member.host}"
            reason = message.reason[:MAX_REASON]
            log.warning("%s is being preempted: %s", author, reason)
            command = Command(kind="stop", save=True, node=self._node, author=author, reason=reason)
            self._by_worker[worker.id] = command
        self.follow()

    def gone(self, worker: LocalWorker, *, failed: bool) -> None:
        self._by_worker.pop(worker.id, None)
        self._told.pop(worker.id, None)
        if failed:
            self._dead.add(worker.id)
            self._send_lost_ranks()

    def tick(self) -> None:
        self.follow()

    def follow(self) -> None:
        self._send_lost_ranks()
        self._look_elsewhere()
        known = self._known()
        if self._asking or known is None or self._command(known) is None:
            return
        if known.moment != self._asked_at or time.monotonic() >= self._again_at:
            self._asking = True
            self._writer.start(self._ask())

    # -- ranks that are gone: until they are replaced no stop is agreed on -------------------------------------------

    def _send_lost_ranks(self) -> None:
        view = self._state.view
        if not self._by_worker or view is None:
            return
        members = view.workers()
        self._dead &= members
        missing = tuple(sorted(worker.rank for worker in members & (self._dead | self._absent)))
        for worker in self._workers:
            if worker.id in self._by_worker and self._told.get(worker.id, ()) != missing:
                self._told[worker.id] = missing
                worker.send(LostRanks(missing))

    def _look_elsewhere(self) -> None:
        """The leader reports ranks that are not registered. This reads from etcd whether that is still true, and
        whether they have left cleanly."""
        view, forming = self._state.view, self._state.forming
        named = set(forming.missing_ranks) if forming is not None else set()
        if view is None or not self._by_worker or self._looking:
            return
        suspects = sorted(worker for worker in view.workers() if worker.rank in named)
        if suspects or self._absent:
            self._looking = True
            self._writer.start(self._look(view, suspects[:MAX_SUSPECTS]))

    async def _look(self, view: View, suspects: Sequence[WorkerId]) -> None:
        keys = self._keys
        ops = [Op.range(keys.left), *(Op.get(keys.member(*worker)) for worker in suspects)]
        try:
            found = (await self._client.txn([], ops, timeout_s=ATTEMPT_S)).results
        except EtcdError as error:
            log.debug("the missing ranks cannot be looked up: %s", error)
            return
        finally:
            self._looking = False
        left, *members = (part.kvs if isinstance(part, Listing) else () for part in found)
        records = {last_part(item.key): Left.decode_or_none(item.value) for item in left}
        active = membership.active_ranks(view, {node: said for node, said in records.items() if said is not None})
        pairs = zip(suspects, members, strict=True)
        self._absent = {worker for worker, there in pairs if worker.rank in active and not there}
        self._send_lost_ranks()

    def _known(self) -> KnownRun | None:
        state = self._state
        if state.view is None or state.agreed is None:
            return None
        return KnownRun(state.view_revision, state.agreed, state.agreed_revision, state.plan, state.decision)

    def _command(self, known: KnownRun) -> Command | None:
        """The command to write, on behalf of the lowest rank; None if none is needed."""
        if known.is_stopping or not self._by_worker:
            return None
        members = sorted(self._workers.in_view(self._state.view, self._node).items())
        asking = (self._by_worker.get(worker.id) for _, worker in members)
        return next((command for command in asking if command is not None), None)

    async def _ask(self) -> None:
        try:
            await self._writer.retry_until_done(self._attempt)
        finally:
            self._asking = False
        self.follow()

    async def _attempt(self) -> None:
        """Uses the current state: the run may have continued while etcd could not be reached."""
        known = self._known()
        command = self._command(known) if known is not None else None
        if known is None or command is None:
            return
        txn = ask_to_stop(self._keys, known, command)
        result = await self._client.txn(txn.compares, txn.then, timeout_s=ATTEMPT_S)
        if result.succeeded:
            log.info("the run is asked to save and stop: %s, %s", command.author, command.reason)
        self._asked_at, self._again_at = known.moment, time.monotonic() + AGAIN_S
