"""What a worker promised, and what it must do at a step. Pure: no socket, no clock.

A promise binds until the decision is known: not to run step `gate` (or any after it) before that. The worker's own
memory is the only place that matters for it; agents come and go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from instep.scalar import Scalar

NEVER = 2**62
"""A step nobody reaches: the gate of a worker that has promised nothing."""


class Answer(Enum):
    ARMED = "armed"
    LATE = "late"
    LATER = "later"
    """Not before the promise that stands is settled: ask again then."""
    KNOWN = "known"


@dataclass(frozen=True, slots=True)
class Promise:
    number: int
    gate: int
    values: Mapping[str, Scalar]
    commit: bool | None = None
    """The decision; None while it is not known."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The decision of plan `number` must be known before this step may run."""

    number: int


@dataclass(frozen=True, slots=True)
class Apply:
    """These values hold from this step on, for every rank."""

    number: int
    values: Mapping[str, Scalar]


class Gate:
    """At most one promise at a time, the inherited one of a newcomer included: whoever joins learns only one gate and
    what held before it, so no second gate may lie ahead of anybody (docs/protocol/, mutant PROMISE_TWO).

    `next_gate` is the first step that needs a closer look.
    """

    def __init__(self) -> None:
        self._promise: Promise | None = None
        self._settled = 0
        self.next_gate = NEVER

    def __repr__(self) -> str:
        promise = self._promise
        return f"Gate({f'plan {promise.number} at step {promise.gate}' if promise else 'nothing promised'})"

    @property
    def undecided(self) -> int | None:
        """The plan that was promised and whose decision is not known."""
        promise = self._promise
        return promise.number if promise is not None and promise.commit is None else None

    @property
    def promised(self) -> int | None:
        """The plan that was promised and lies ahead."""
        return self._promise.number if self._promise is not None else None

    @property
    def newest(self) -> int:
        """The highest number of a plan that was promised or is past: none up to it is promised any more."""
        return max(self._settled, self._promise.number if self._promise is not None else 0)

    def is_new(self, number: int) -> bool:
        """Whether a plan of that number would be answered by a promise, were it in time."""
        return self._promise is None and number > self._settled

    @property
    def committed(self) -> int | None:
        """The plan that was promised, is agreed on, and lies ahead."""
        promise = self._promise
        return promise.number if promise is not None and promise.commit else None

    def start(self, plan: int) -> None:
        """A view begins: every plan up to this one is past, except for what `inherit` adds."""
        self._settled = plan
        self._hold(None)

    def inherit(self, number: int, gate: int, values: Mapping[str, Scalar]) -> None:
        """A decision made before this worker came, for a step it has still before it."""
        assert self._promise is None, "a worker inherits before it promises"
        self._hold(Promise(number, gate, values, commit=True))

    def hear_plan(self, number: int, gate: int, values: Mapping[str, Scalar], next_step: int) -> Answer:
        """`next_step` is the step about to be run: it has not begun, so `gate` may be equal to it."""
        promise = self._promise
        if promise is not None and number == promise.number:
            return Answer.ARMED if promise.commit is None else Answer.KNOWN
        if number <= self._settled or (promise is not None and number < promise.number):
            return Answer.KNOWN
        if promise is not None:
            return Answer.LATER
        if next_step > gate:
            return Answer.LATE
        self._hold(Promise(number, gate, values))
        return Answer.ARMED

    def hear_decision(self, number: int, commit: bool) -> None:
        """Decisions of plans never promised are none of this worker's business: they can only be aborts."""
        promise = self._promise
        if promise is None or number != promise.number:
            return
        if commit:
            self._hold(replace(promise, commit=True))
        else:
            self._settle(promise)

    def at(self, step: int) -> Wait | Apply | None:
        """What must be done before `step` may run; ask again until there is nothing."""
        promise = self._promise
        if promise is None or promise.gate > step:
            return None
        if promise.commit is None:
            return Wait(promise.number)
        self._settle(promise)
        return Apply(promise.number, promise.values)

    def _settle(self, promise: Promise) -> None:
        self._settled = max(self._settled, promise.number)
        self._hold(None)

    def _hold(self, promise: Promise | None) -> None:
        self._promise = promise
        self.next_gate = promise.gate if promise is not None else NEVER
