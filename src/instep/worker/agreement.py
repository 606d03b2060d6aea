"""The values that hold for a worker, and its part in agreeing on the next ones. No socket, no clock.

What the agent says comes in, what is to be answered goes out: `Gate` decides, this prepares and applies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar

from instep.scalar import Scalar, same
from instep.wire import Message
from instep.worker.course import Course
from instep.worker.gate import NEVER, Answer, Apply, Gate, Wait
from instep.worker.hyper import Codec
from instep.worker.orders import Order, Orders
from instep.worker.replay import REFUSAL, Replay

log = logging.getLogger("instep")

Config = TypeVar("Config", default=Any)


@dataclass(frozen=True, slots=True)
class Start:
    """What a worker starts its first view with: `previous` before step `gate`, `values` from it on."""

    values: Mapping[str, Scalar]
    plan: int
    gate: int | None
    previous: Mapping[str, Scalar] | None
    course: Course

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Start:
        course = Course.of(document.get("course") or {})
        return cls(document["values"], document["plan"], document.get("gate"), document.get("previous"), course)


@dataclass(frozen=True, slots=True)
class Stand:
    """The run is paused: this step waits until it is resumed."""


class Agreement(Generic[Config]):
    """Promise: from `start` on `config` and `course` change in `begin` and `apply` only, that is at a boundary.

    `due` says what comes before a step; `applied` is what every agent must hear of the last plan. Methods that
    return messages leave it to the caller to say them: the next agent asks again for those that are lost.
    """

    def __init__(self, codec: Codec, replay: Replay | None = None) -> None:
        self.gate = Gate()
        self.course = Course()
        self.orders = Orders()
        self.config: Config
        self.applied: Message | None = None
        self.plan = 0
        """The newest plan that this worker has applied or started with."""
        self.origin = 0
        """The view in which the run last began anew."""
        self.back = 0
        """The plan that last took it back to a checkpoint since then, 0 for none."""
        self.agreed: Message | None = None
        """The record of what this worker knows to be agreed on, as its agent gave it: should etcd lose it, it is
        written back from here."""
        self.epoch = 0
        """The run's epoch, as last heard."""
        self._told: Message | None = None
        """The plan that was promised last."""
        self.began: Message | None = None
        """What every agent must hear of the first step of a view."""
        self._origin: Message | None = None
        self._codec = codec
        self._replay = replay
        self._next_value = NEVER
        self._view = 0
        self._values: dict[str, Scalar] = {}
        self._start: Start | None = None
        self._order: Order | None = None
        self._prepared: tuple[int, Config] | None = None
        self._postponed: Message | None = None
        self._callbacks: list[Callable[[Config, Config], object]] = []

    def __repr__(self) -> str:
        return f"Agreement({self.gate!r}, {self._values})"

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON Schema of what this worker accepts."""
        return self._codec.document if self._replay is None else self._replay.document

    @property
    def values(self) -> dict[str, Scalar]:
        """What holds now."""
        return dict(self._values)

    def on_change(self, function: Callable[[Config, Config], object]) -> None:
        """From now on `function(old, new)` is called at each change."""
        self._callbacks.append(function)

    def refusals(self, question: Message) -> Message:
        """What this worker would refuse to start with."""
        refused = self._codec.refusals(question["values"], question["base"], question["groups"])
        return {"t": "tried", "n": question["n"], "refused": refused}

    # -- how it begins ----------------------------------------------------------------------------------------------

    def start(self, document: Mapping[str, Any], view: int = 0, agreed: Message | None = None) -> None:
        """The first view gives these values, unless they come from a schedule. `agreed` is the record of them."""
        self.agreed = agreed
        self._start = start = Start.of(document)
        self.gate.start(start.plan)
        self.plan = start.plan
        self.origin, self.back = int(document.get("origin", 0)), int(document.get("back", 0))
        self.course = start.course
        self._view = view
        self._values = dict(start.values if self._replay is None else self._replay.schedule.values)
        self.config = self._codec.decode(self._values)

    def go_on_from(self, checkpoint_id: str, step: int, *, view: int, plan: int) -> None:
        """The ranks have agreed on this checkpoint, saved in that view after that plan: a schedule gives the values of
        the step that follows it."""
        self._origin = {"id": checkpoint_id, "step": step, "view": view, "plan": plan}
        self._follow_schedule(step + 1)

    def begin(self, step: int) -> list[Message]:
        """The first boundary: only now is it known on which side of the last agreed gate this worker begins.

        At every later one there is nothing to it but what a schedule says.
        """
        self._follow_schedule(step)
        if self._start is None:
            return []
        start, self._start = self._start, None
        self.began = {"t": "began", "view": self._view, "step": step, "origin": self._origin}
        said = [self.began]
        if start.gate is not None and start.previous is not None:
            if step < start.gate:
                self._use(start.previous, None)
                self.gate.inherit(start.plan, start.gate, start.values)
            else:
                said.append(self._has_applied(start.plan, step))
        return said + self.hear_postponed(step)

    # -- what the agent says ----------------------------------------------------------------------------------------

    def hear_plan(self, message: Message, step: int) -> list[Message]:
        """`step` is the one about to be run."""
        if self._start is not None:
            self._postponed = message  # not before it is known on which side of the last gate this worker begins
            return []
        number, values, order = message["n"], message["values"], Order.of(message)
        named = {"n": number, "digest": message.get("digest", "")}  # there may be two plans of one number
        if self._is_foreign(message):
            agreed = self.agreed or {}
            log.error(
                "plan %d is refused: it does not follow from decision %s that holds here, so etcd's history went back",
                number,
                agreed.get("plan"),
            )
            holds = f"decision {agreed.get('plan')} ({agreed.get('digest')})"
            return [{"t": "foreign", **named, "holds": holds}]
        # Paused it stands before `step`, wherever the gate is: no step is run before it knows the decision.
        gate = max(message["gate"], step) if self.course.is_paused(step) else message["gate"]
        answer = self.gate.hear_plan(number, gate, values, step)
        if answer is Answer.LATER:
            self._postponed = message
        elif answer is Answer.LATE:
            return [{"t": "late", **named, "step": step}]
        elif answer is Answer.ARMED:
            self._told = message  # also one that is refused: the gate waits until its abort is known
            problems = self._why_not(values, order)
            if problems:
                return [{"t": "refused", **named, "problems": problems}]
            self._order = order
            if values:
                self._prepared = (number, self._codec.decode({**self._values, **values}))
            return [{"t": "armed", **named}]
        return []

    def _is_foreign(self, message: Message) -> bool:
        """Whether a plan is of a history that branched off from the one that this worker has trained with."""
        parent, digest = message.get("parent", ""), message.get("digest", "")
        held = (self.agreed or {}).get("digest", "")
        if self.gate.promised == message["n"]:
            return bool(self._told is not None and self._told.get("digest", "") != digest)
        return bool(self.gate.is_new(message["n"]) and held and parent != held)

    def promised(self) -> Message:
        """What names the plan that was promised last, beside its number."""
        told = self._told or {}
        return {"digest": told.get("digest", ""), "epoch": told.get("epoch", 0)}

    @property
    def undecided(self) -> Message | None:
        """The record of the plan that was promised and whose decision is not known."""
        told = self._told
        return told.get("record") if told is not None and told["n"] == self.gate.undecided else None

    def _why_not(self, values: Mapping[str, Scalar], order: Order) -> dict[str, str]:
        if values and self._replay is not None:
            return dict.fromkeys(values, REFUSAL)
        return self._codec.problems(self._values, values) if values else self.orders.why_not(order)

    def hear_decision(self, number: int, commit: bool, step: int, digest: str = "") -> list[Message]:
        """`digest` names the plan, where it is known: one of a history that is lost may have had the same number."""
        told = self._told
        if told is not None and told["n"] == number and digest not in ("", told.get("digest", "")):
            return []
        if commit and told is not None and number == self.gate.undecided:
            self.agreed = told.get("then") or self.agreed
        self.gate.hear_decision(number, commit)
        if self._postponed is not None and self._postponed["n"] == number:
            self._postponed = None  # decided without this worker, so aborted: nothing to promise
        return self.hear_postponed(step)

    def hear_postponed(self, step: int) -> list[Message]:
        """The promise that stood may be settled now: looks again at the plan that had to wait for it."""
        if self._postponed is None:
            return []
        message, self._postponed = self._postponed, None
        return self.hear_plan(message, step)

    # -- what is due ------------------------------------------------------------------------------------------------

    @property
    def next_gate(self) -> int:
        """The first step before which there may be something to do."""
        return min(self.gate.next_gate, self.course.next_stop, self._next_value)

    @property
    def is_ending(self) -> bool:
        """Whether it is agreed, as far as is known here, that the run stops."""
        order, coming = self._order, Course()
        if order is not None and order.number == self.gate.committed:
            coming = order.course or coming
        return self.course.ends_at is not None or coming.ends_at is not None

    def due(self, step: int) -> Wait | Apply | Stand | None:
        """What must be done before `step` may run; ask again until there is nothing.

        A paused rank never asks for an abort: what it has promised can only be decided while it stands there.
        """
        due = self.gate.at(step)
        if not isinstance(due, Apply) and self.course.is_paused(step):
            return Stand()
        return due

    def apply(self, due: Apply, step: int) -> int:
        """The step to run next: another one only when the run goes back to a checkpoint. `applied` says it was done.

        Raises whatever a function of the script raises; then nobody is told that it was applied.
        """
        prepared, self._prepared = self._prepared, None
        order, self._order = self._order, None
        known = prepared[1] if prepared and prepared[0] == due.number else None
        if due.values:
            self._use({**self._values, **due.values}, known)
        goes_on = None
        if order is not None and order.number == due.number:
            if order.course is not None:
                self.course = order.course.from_step(order.gate, step)
            goes_on = self.orders.act(order)
            if goes_on is not None:
                self.back = due.number
                self._follow_schedule(goes_on)
        self._has_applied(due.number, step)
        return step if goes_on is None else goes_on

    def _follow_schedule(self, step: int) -> None:
        """Raises ConfigError when a fixed hyperparameter would have to change now that the worker trains."""
        if self._replay is None:
            return
        values = self._replay.values_at(step)
        self._next_value = self._replay.next_step
        if all(name in self._values and same(self._values[name], value) for name, value in values.items()):
            return
        if self._start is None:
            self._replay.check_fixed(self._values, values, step)
        self._use(values, None)

    def _has_applied(self, number: int, step: int) -> Message:
        agreed = self.agreed or {}
        digest = agreed.get("digest", "") if agreed.get("plan") == number else ""
        self.applied = {"t": "applied", "n": number, "step": step, "digest": digest}
        self.plan = number
        return self.applied

    def _use(self, values: Mapping[str, Scalar], prepared: Config | None) -> None:
        """From here on these values hold: decoded, told to whoever asked to be told."""
        self._values = dict(values)
        old, self.config = self.config, prepared if prepared is not None else self._codec.decode(self._values)
        for function in self._callbacks:
            function(old, self.config)
