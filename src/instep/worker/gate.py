"""What a worker promised, and what it must do at a step. Pure: no socket, no clock.

A promise binds until the decision is known: not to run step `gate` (or any after it) before that. The worker's own
memory is the only place that matters for it; agents come and go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from instep.scalar import Scalar

NEVER = 2**62
"""A step nobody reaches: the gate of a worker that has promised nothing."""


class Answer(Enum):
    ARMED = "armed"
    LATE = "late"
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
    """The promises of one worker. `next_gate` is the first step that needs a closer look."""

    def __init__(self) -> None:
        self._promises: dict[int, Promise] = {}
        self._settled = 0
        self.next_gate = NEVER

    def __repr__(self) -> str:
        waiting = ", ".join(f"plan {p.number} at step {p.gate}" for p in self._promises.values())
        return f"Gate({waiting or 'nothing promised'})"

    @property
    def undecided(self) -> tuple[int, ...]:
        return tuple(number for number, promise in self._promises.items() if promise.commit is None)

    def start(self, plan: int) -> None:
        """A view begins: every plan up to this one is past, except for what `committed` adds."""
        self._settled = plan
        self._promises.clear()
        self._look()

    def committed(self, number: int, gate: int, values: Mapping[str, Scalar]) -> None:
        """A decision made before this worker came, for a step it has still before it."""
        self._promises[number] = Promise(number, gate, values, commit=True)
        self._look()

    def hear_plan(self, number: int, gate: int, values: Mapping[str, Scalar], next_step: int) -> Answer:
        """`next_step` is the step about to be run: it has not begun, so `gate` may be equal to it."""
        if number in self._promises:
            return Answer.ARMED if self._promises[number].commit is None else Answer.KNOWN
        if number <= self._settled:
            return Answer.KNOWN
        if next_step > gate:
            return Answer.LATE
        self._promises[number] = Promise(number, gate, values)
        self._look()
        return Answer.ARMED

    def hear_decision(self, number: int, commit: bool) -> None:
        """Decisions of plans never promised are none of this worker's business: they can only be aborts."""
        promise = self._promises.get(number)
        if promise is None:
            return
        if commit:
            self._promises[number] = Promise(number, promise.gate, promise.values, commit=True)
        else:
            self._settle(number)

    def at(self, step: int) -> Wait | Apply | None:
        """What must be done before `step` may run; ask again until there is nothing."""
        for number in sorted(self._promises):
            promise = self._promises[number]
            if promise.gate > step:
                continue
            if promise.commit is None:
                return Wait(number)
            self._settle(number)
            return Apply(number, promise.values)
        return None

    def _settle(self, number: int) -> None:
        del self._promises[number]
        self._settled = max(self._settled, number)
        self._look()

    def _look(self) -> None:
        self.next_gate = min((promise.gate for promise in self._promises.values()), default=NEVER)
