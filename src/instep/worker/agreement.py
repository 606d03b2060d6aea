"""The values that a worker trains with, and its part in agreeing on the next ones. No socket, no clock.

Messages of the agent come in, answers go out. `Gate` decides; this module prepares and applies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar

from instep.scalar import Scalar, same
from instep.wire import messages as wire
from instep.wire.documents import Agreed, Directive, Origin, Plan, Snapshot
from instep.worker.command_handlers import CommandHandlers
from instep.worker.gate import NEVER, Apply, Gate, PromiseAnswer, Wait
from instep.worker.hyper import Codec
from instep.worker.replay import REFUSAL, Replay

log = logging.getLogger("instep")

Config = TypeVar("Config", default=Any)


@dataclass(frozen=True, slots=True)
class Paused:
    """The run is paused: this step waits until it is resumed."""


class Agreement(Generic[Config]):
    """Promise: after `start`, `config` and `directive` change only in `begin` and `apply`, that is, at a boundary.

    `due` returns what comes before a step. `applied` is the newest report, which every agent must get. Methods
    return messages for the caller to send; the next agent asks again for those that are lost.
    """

    def __init__(self, codec: Codec, replay: Replay | None = None) -> None:
        self.gate = Gate()
        self.directive = Directive()
        self.handlers = CommandHandlers()
        self.config: Config
        self.applied: wire.PlanApplied | None = None
        self.plan = 0
        """The newest plan that this worker has applied or started with."""
        self.origin = 0
        """The view of the last fresh start."""
        self.back = 0
        """The plan that last took the run back to a checkpoint since then, 0 for none."""
        self.agreed: Agreed | None = None
        """The newest agreed values that this worker knows of: if etcd loses them, they are restored from here."""
        self.epoch = 0
        """The newest epoch of the run that this worker knows of."""
        self._told: wire.ProposePlan | None = None
        """The plan that was promised last."""
        self.began: wire.Began | None = None
        """The report of the first step of the view, which every agent must get."""
        self._origin: Origin | None = None
        self._codec = codec
        self._replay = replay
        self._next_value = NEVER
        self._view = 0
        self._values: dict[str, Scalar] = {}
        self._start: Snapshot | None = None
        self._prepared: tuple[int, Config] | None = None
        self._postponed: wire.ProposePlan | None = None
        self._callbacks: list[Callable[[Config, Config], object]] = []

    def __repr__(self) -> str:
        return f"Agreement({self.gate!r}, {self._values})"

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the values that this worker accepts."""
        return self._codec.document if self._replay is None else self._replay.document

    @property
    def values(self) -> dict[str, Scalar]:
        """The current values."""
        return dict(self._values)

    def on_change(self, function: Callable[[Config, Config], object]) -> None:
        """Calls `function(old, new)` at each change from now on."""
        self._callbacks.append(function)

    def refusals(self, asked: wire.AskDryRun) -> wire.DryRunResult:
        """The values that this worker would refuse to start with."""
        refused = self._codec.refusals(asked.values, asked.base, asked.groups)
        return wire.DryRunResult(asked.number, tuple(refused))

    # -- how it begins ----------------------------------------------------------------------------------------------

    def start(self, start: Snapshot, view: int = 0, agreed: Agreed | None = None) -> None:
        """Takes the values of the first view, unless a schedule gives them. `agreed` is the record of them."""
        self.agreed, self._start = agreed, start
        self.gate.start(start.plan)
        self.plan, self.origin, self.back = start.plan, start.origin, start.back
        self.directive = start.directive
        self._view = view
        self._values = dict(start.values if self._replay is None else self._replay.schedule.values)
        self.config = self._codec.decode(self._values)

    def continue_from(self, checkpoint_id: str, step: int, *, view: int, plan: int) -> None:
        """The ranks have agreed on this checkpoint, which was saved in that view after that plan. A schedule gives
        the values of the step after it."""
        self._origin = Origin(checkpoint_id, step, view, plan)
        self._follow_schedule(step + 1)

    def begin(self, step: int) -> list[wire.FromWorker]:
        """The first boundary: it determines on which side of the last agreed gate this worker begins.

        Later boundaries only apply the schedule, if there is one.
        """
        self._follow_schedule(step)
        if self._start is None:
            return []
        start, self._start = self._start, None
        self.began = wire.Began(self._view, step, self._origin)
        said: list[wire.FromWorker] = [self.began]
        if start.gate is not None and start.previous is not None:
            if step < start.gate:
                self._use(start.previous, None)
                self.gate.inherit(start.plan, start.gate, start.values)
            else:
                said.append(self._has_applied(start.plan, step))
        return said + self.answer_postponed(step)

    # -- what the agent says ----------------------------------------------------------------------------------------

    def on_plan(self, message: wire.ProposePlan, step: int) -> list[wire.FromWorker]:
        """`step` is the one about to be run."""
        if self._start is not None:
            self._postponed = message  # until it is known on which side of the last gate this worker begins
            return []
        plan = message.plan
        number, digest, values = plan.number, plan.digest, plan.values  # two plans may have the same number
        if self._is_foreign(plan):
            held = f"decision {self.agreed.plan} ({self.agreed.digest})" if self.agreed is not None else "no decision"
            log.error("plan %d is refused: it does not follow from %s here, so etcd's history went back", number, held)
            return [wire.PlanForeign(number, digest, held)]
        # A paused rank waits before `step`, wherever the gate is: it runs no step before it knows the decision.
        gate = max(plan.gate, step) if self.directive.is_paused(step) else plan.gate
        answer = self.gate.on_plan(number, gate, values, step)
        if answer is PromiseAnswer.LATER:
            self._postponed = message
        elif answer is PromiseAnswer.LATE:
            return [wire.PlanLate(number, digest, step)]
        elif answer is PromiseAnswer.ARMED:
            self._told = message  # also one that is refused: the gate waits until its abort is known
            problems = self._why_not(plan)
            if problems:
                return [wire.PlanRefused(number, digest, problems)]
            if values:
                self._prepared = (number, self._codec.decode({**self._values, **values}))
            return [wire.PlanArmed(number, digest)]
        return []

    def _is_foreign(self, plan: Plan) -> bool:
        """Whether the plan belongs to a history that branched off from the one that this worker has trained with."""
        if self.gate.promised == plan.number:
            return self._told is not None and self._told.plan.digest != plan.digest
        held = self.agreed.digest if self.agreed is not None else ""
        return self.gate.is_new(plan.number) and held not in ("", plan.parent)

    def at_gate(self, number: int, step: int) -> wire.AtGate:
        """The question for the agent before `step`, if the decision of plan `number` is not known."""
        plan = self._told.plan if self._told is not None else None
        return wire.AtGate(number, plan.digest if plan is not None else "", plan.epoch if plan is not None else 0, step)

    @property
    def undecided(self) -> Plan | None:
        """The promised plan whose decision is not known."""
        return self._told_as(self.gate.undecided)

    def _told_as(self, number: int | None) -> Plan | None:
        """The plan that was promised last, if it has that number."""
        return self._told.plan if self._told is not None and self._told.plan.number == number else None

    def _why_not(self, plan: Plan) -> dict[str, str]:
        if plan.values and self._replay is not None:
            return dict.fromkeys(plan.values, REFUSAL)
        return self._codec.problems(self._values, plan.values) if plan.values else self.handlers.why_not(plan)

    def on_decision(self, decision: wire.Decide, step: int) -> list[wire.FromWorker]:
        number, told = decision.number, self._told
        if told is not None and told.plan.number == number and decision.digest not in ("", told.plan.digest):
            return []
        if decision.commit and told is not None and number == self.gate.undecided:
            self.agreed = told.then or self.agreed
        self.gate.on_decision(number, decision.commit)
        if self._postponed is not None and self._postponed.plan.number == number:
            self._postponed = None  # decided without this worker, so it is aborted
        return self.answer_postponed(step)

    def answer_postponed(self, step: int) -> list[wire.FromWorker]:
        """Answers a postponed plan, if the earlier promise is settled now."""
        if self._postponed is None:
            return []
        message, self._postponed = self._postponed, None
        return self.on_plan(message, step)

    # -- what is due ------------------------------------------------------------------------------------------------

    @property
    def next_gate(self) -> int:
        """The first step before which there may be something to do."""
        stops = [at for at in (self.directive.paused_at, self.directive.ends_at) if at is not None]
        return min(self.gate.next_gate, self._next_value, *stops)

    @property
    def is_ending(self) -> bool:
        """Whether a stop of the run is agreed on, as far as this worker knows."""
        plan = self._told_as(self.gate.committed)
        coming = plan.directive if plan is not None else None
        return self.directive.ends_at is not None or (coming is not None and coming.ends_at is not None)

    def due(self, step: int) -> Wait | Apply | Paused | None:
        """What must be done before `step` may run; call it again until it returns None.

        A paused rank never asks for an abort: its promise can be decided while it waits.
        """
        due = self.gate.at(step)
        if not isinstance(due, Apply) and self.directive.is_paused(step):
            return Paused()
        return due

    def apply(self, due: Apply, step: int) -> int:
        """Returns the step to run next: another one only if the run goes back to a checkpoint. `applied` is the
        report.

        Raises whatever a function of the script raises; then there is no report.
        """
        prepared, self._prepared = self._prepared, None
        plan = self._told_as(due.number)
        known = prepared[1] if prepared and prepared[0] == due.number else None
        if due.values:
            self._use({**self._values, **due.values}, known)
        continues_at = None
        if plan is not None:
            if plan.directive is not None:
                self.directive = plan.directive.from_step(plan.gate, step)
            continues_at = self.handlers.act(plan)
            if continues_at is not None:
                self.back = due.number
                self._follow_schedule(continues_at)
        self._has_applied(due.number, step)
        return step if continues_at is None else continues_at

    def _follow_schedule(self, step: int) -> None:
        """Raises ConfigError if a fixed hyperparameter would change while the worker trains."""
        if self._replay is None:
            return
        values = self._replay.values_at(step)
        self._next_value = self._replay.next_step
        if all(name in self._values and same(self._values[name], value) for name, value in values.items()):
            return
        if self._start is None:
            self._replay.check_fixed(self._values, values, step)
        self._use(values, None)

    def _has_applied(self, number: int, step: int) -> wire.PlanApplied:
        agreed = self.agreed
        self.applied = wire.PlanApplied(
            number, agreed.digest if agreed is not None and agreed.plan == number else "", step
        )
        self.plan = number
        return self.applied

    def _use(self, values: Mapping[str, Scalar], prepared: Config | None) -> None:
        """Makes these values the current ones and calls the callbacks."""
        self._values = dict(values)
        old, self.config = self.config, prepared if prepared is not None else self._codec.decode(self._values)
        for function in self._callbacks:
            function(old, self.config)
