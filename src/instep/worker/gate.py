"""What a worker has promised, and what it must do at a step. Pure: no socket, no clock.

A promise binds until the decision is known: until then, the worker does not run step `gate` or any later one. The
worker's memory is the only place of the promise; agents may be replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from instep.scalar import Scalar

NEVER = 2**62
"""A step that is never reached: the gate of a worker that has promised nothing."""


class PromiseAnswer(Enum):
    ARMED = "armed"
    LATE = "late"
    LATER = "later"
    """Not before the current promise is settled: ask again then."""
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
    """These values apply from this step on, on every rank."""

    number: int
    values: Mapping[str, Scalar]


class Gate:
    """At most one promise at a time, including the inherited one of a newcomer: a joining worker learns only one
    gate and the values before it, so no worker may have a second gate ahead (docs/protocol/, mutant PROMISE_TWO).

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
        """The promised plan whose decision is not known."""
        promise = self._promise
        return promise.number if promise is not None and promise.commit is None else None

    @property
    def promised(self) -> int | None:
        """The promised plan whose gate is ahead."""
        return self._promise.number if self._promise is not None else None

    @property
    def newest(self) -> int:
        """The highest number of a plan that was promised or is past: none up to it is promised again."""
        return max(self._settled, self._promise.number if self._promise is not None else 0)

    def is_new(self, number: int) -> bool:
        """Whether a plan of that number would be promised, if it is in time."""
        return self._promise is None and number > self._settled

    @property
    def committed(self) -> int | None:
        """The promised plan that is committed and whose gate is ahead."""
        promise = self._promise
        return promise.number if promise is not None and promise.commit else None

    def start(self, plan: int) -> None:
        """A view begins: all plans up to this one are past, except for what `inherit` adds."""
        self._settled = plan
        self._hold(None)

    def inherit(self, number: int, gate: int, values: Mapping[str, Scalar]) -> None:
        """Adds a decision from before this worker joined, for a step that it has not reached."""
        assert self._promise is None, "a worker inherits before it promises"
        self._hold(Promise(number, gate, values, commit=True))

    def on_plan(self, number: int, gate: int, values: Mapping[str, Scalar], next_step: int) -> PromiseAnswer:
        """`next_step` is the step about to be run: it has not begun, so `gate` may be equal to it."""
        promise = self._promise
        if promise is not None and number == promise.number:
            return PromiseAnswer.ARMED if promise.commit is None else PromiseAnswer.KNOWN
        if number <= self._settled or (promise is not None and number < promise.number):
            return PromiseAnswer.KNOWN
        if promise is not None:
            return PromiseAnswer.LATER
        if next_step > gate:
            return PromiseAnswer.LATE
        self._hold(Promise(number, gate, values))
        return PromiseAnswer.ARMED

    def on_decision(self, number: int, commit: bool) -> None:
        """Ignores decisions of plans that were not promised: they can only be aborts."""
        promise = self._promise
        if promise is None or number != promise.number:
            return
        if commit:
            self._hold(replace(promise, commit=True))
        else:
            self._settle(promise)

    def at(self, step: int) -> Wait | Apply | None:
        """What must be done before `step` may run; call it again until it returns None."""
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
