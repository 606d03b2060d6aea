"""Carries out the node's part in the agreement: sends plans and decisions to the workers, and their answers to etcd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from instep.agent.context import Component, Context
from instep.agent.workers import LocalWorker
from instep.etcd import Event
from instep.protocol.chain import Promised, if_committed
from instep.protocol.keys import Keys
from instep.protocol.node import (
    NodeAction,
    NodeAgreement,
    SettlePromise,
    TellDecision,
    TellPlan,
    WriteAck,
    WriteLeft,
    WriteReceipt,
)
from instep.protocol.records import Agreed, Decision, FirstStep, Left, Plan, RankFailure
from instep.protocol.transactions import acknowledge, write_failure, write_first_step
from instep.wire import messages as wire


class PlanRelay(Component):
    """Decides nothing: `NodeAgreement` does. Promise: writes are retried until they succeed. Limit: messages for a
    worker that is not connected are dropped; `welcome` repeats what is open."""

    def __init__(self, context: Context, on_told: Callable[[], None]) -> None:
        super().__init__(context)
        self._on_told = on_told
        self._agreement = NodeAgreement(context.node)
        self._receipt = ""
        """The key of the newest receipt."""
        self._left: Left | None = None
        """The ranks that had left when etcd's history went back."""

    def __repr__(self) -> str:
        return f"PlanRelay({self._agreement!r})"

    def members(self) -> dict[int, LocalWorker]:
        """By rank, the connected workers of the view: only their answers count."""
        return self._workers.in_view(self._state.view, self._node)

    def is_member(self, worker: LocalWorker) -> bool:
        return self.members().get(worker.rank) is worker

    # -- what etcd says ---------------------------------------------------------------------------------------------

    def enter_view(self, left: Left | None) -> bool:
        """False if there is no view, or no new one. `left`: the ranks of the view that left under a former agent."""
        view = self._state.view
        if view is None or view.number == self._agreement.view_number:
            return False
        self._do(self._agreement.on_view(view, left if self._left is None else self._left))
        return True

    def follow_plans(self, events: tuple[Event, ...]) -> None:
        """`events` also has decisions of older plans."""
        plan, decision = self._state.plan, self._state.decision
        if plan is None:
            return
        for number, earlier in _decisions(events, self._keys):
            if number < plan.number:
                self._do(self._agreement.on_decision(number, earlier))
        self._do(self._agreement.on_plan(plan))
        self._repeat_applied(plan)
        if decision is not None and self._agreement.decision is None:
            self._do(self._agreement.on_decision(plan.number, decision))

    def look_up(self, promised: Promised) -> None:
        """Passes on the decision of a plan, if there is one. A worker has promised the plan to a former agent, or
        before etcd's history went back."""
        self._writer.look_up(promised, self._decision_callback(promised))

    def reset(self) -> None:
        """etcd holds another history. Ranks that have left stay left."""
        self.repeat()
        self._agreement = NodeAgreement(self._node)

    def repeat(self) -> None:
        """Writes which ranks have left."""
        self._left = self._agreement.left() or self._left
        self._keep_left()

    def _keep_left(self) -> None:
        """Writes which ranks have left by now, because the view may have changed while a receipt was written."""
        left = self._agreement.left()
        if left is not None:
            self._writer.keep(self._keys.left_of(self._node), left.encode())

    def _repeat_applied(self, plan: Plan) -> None:
        """Repeats what workers reported before etcd's history went back: the receipt is lost, or was not due."""
        for rank, worker in self.members().items():
            applied = worker.applied
            if applied is not None and applied.digest == plan.digest and rank not in self._agreement.applied:
                self._do(self._answered(rank, applied))

    # -- what workers of the view say, and what becomes of them -----------------------------------------------------

    def handle(self, worker: LocalWorker, message: wire.FromWorker) -> None:
        if isinstance(message, wire.PlanApplied):
            worker.applied = message  # even if its view is not known: etcd may have lost it
        is_member = self.is_member(worker)
        match message:
            case wire.Began(view, step, origin) if is_member and worker.rank == 0:  # all ranks run the same steps
                self._writer.write(write_first_step(self._keys, view, FirstStep(step=step, origin=origin)))
            case wire.PlanAnswer() if is_member or (isinstance(message, wire.AtGate) and worker.view):
                self._do(self._answered(worker.rank, message))  # a rank at its gate gets an answer

    def welcome(self, worker: LocalWorker) -> None:
        self._do(self._agreement.on_joined(worker.rank))

    def left(self, rank: int, last_step: int, then: Callable[[], None]) -> None:
        """Calls `then` when etcd has the departure and the receipt of what the rank applied: without a receipt, a
        rank that has left does not count among those that a change was applied on."""
        self._do(self._agreement.on_left(rank, last_step))
        key = self._keys.left_of(self._node)
        self._writer.when_kept(self._receipt, partial(self._writer.when_kept, key, then))

    def failed(self, rank: int, failure: RankFailure, then: Callable[[], None]) -> None:
        """Calls `then` when etcd has the failure."""
        self._writer.write(write_failure(self._keys, self._node, failure), then)
        self._do(self._agreement.on_died(rank))

    def _answered(self, rank: int, message: wire.PlanAnswer) -> list[NodeAction]:
        agreement, number = self._agreement, message.number
        if isinstance(message, wire.AtGate):
            return agreement.on_gate(rank, Promised(number, message.digest, message.epoch), message.step)
        if not agreement.is_about(number, message.digest):
            return []
        match message:
            case wire.PlanArmed():
                return agreement.on_armed(rank, number)
            case wire.PlanLate():
                return agreement.on_late(rank, number, message.step)
            case wire.PlanRefused():
                return agreement.on_refused(number, message.problems, rank)
            case wire.PlanForeign():
                return agreement.on_foreign(rank, number, message.holds[:100])
            case wire.PlanApplied():
                return agreement.on_applied(rank, number, message.step, message.drift or ())
            case _:
                return []

    # -- carrying out -----------------------------------------------------------------------------------------------

    def _do(self, actions: list[NodeAction]) -> None:
        local = self.members()
        messages: list[tuple[LocalWorker, wire.FromAgent]] = []
        for action in actions:
            match action:
                case TellPlan(rank, plan) if rank in local and local[rank].met == plan.view:
                    messages.append((local[rank], self._plan_for(local[rank], plan)))
                case TellDecision(rank, number, decision, digest) if rank in local:
                    messages.append((local[rank], self._decision_for(local[rank], number, decision, digest)))
                case WriteAck(number, ack):
                    self._writer.write(acknowledge(self._keys, number, ack))
                case WriteReceipt(number, receipt):
                    self._receipt = self._keys.receipt(number, self._node)
                    self._writer.keep(self._receipt, receipt.encode())
                case WriteLeft():
                    self._writer.when_kept(self._receipt, self._keep_left)
                case SettlePromise(promised, decision):
                    self._writer.settle(promised, decision, self._decision_callback(promised))
                case _:
                    pass  # for a worker that is not connected: `welcome` repeats it
        self._send(messages)

    def _send(self, messages: list[tuple[LocalWorker, wire.FromAgent]]) -> None:
        """Persists what the workers are about to receive, once for all of them, because a worker may promise each plan
        that it receives."""
        if messages:
            self._on_told()
        for worker, message in messages:
            worker.send(message)

    def _decision_callback(self, promised: Promised) -> Callable[[Decision], None]:
        """Sends the decision to all workers that hold the promise, even if their view is not known."""

        def send(decision: Decision) -> None:
            self._do(self._agreement.on_decision(promised.number, decision, promised.digest))
            self._send(
                [
                    (worker, self._decision_for(worker, promised.number, decision, worker.told.digest))
                    for worker in self._workers
                    if worker.told is not None
                    and worker.told.number == promised.number
                    and promised.digest in ("", worker.told.digest)
                ]
            )

        return send

    def _plan_for(self, worker: LocalWorker, plan: Plan) -> wire.ProposePlan:
        if worker.told is None or worker.told.number < plan.number:
            worker.told, worker.heard = plan, max(worker.heard, plan.number)
        return wire.ProposePlan(plan, if_committed(self._state.agreed, plan))

    def _decision_for(self, worker: LocalWorker, number: int, decision: Decision, digest: str) -> wire.Decide:
        told = worker.told
        if told is not None and number == told.number and digest in ("", told.digest):
            agreed = if_committed(self._held(worker), told) if decision.commit else None
            if agreed is not None:
                worker.agreed, worker.plan = agreed, told
            worker.told = None
        return wire.Decide(number, decision.commit, digest)

    def _held(self, worker: LocalWorker) -> Agreed | None:
        """The agreed values that the worker holds; if unknown, those in etcd, which the plan follows."""
        return worker.agreed if worker.agreed is not None else self._state.agreed


def _decisions(events: tuple[Event, ...], keys: Keys) -> Iterator[tuple[int, Decision]]:
    for event in events:
        key = event.kv.key
        if event.kind == "put" and key.startswith(keys.plans) and key.endswith("/decision"):
            number = key.removeprefix(keys.plans).removesuffix("/decision")
            decision = Decision.decode_or_none(event.kv.value)
            if decision is not None and number.isdigit():
                yield int(number), decision
