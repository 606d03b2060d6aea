"""Which of a node's workers makes no progress, and which one the node's candidate names. Pure.

All times are seconds on the monotonic clock, which the agent and its workers share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from instep.protocol.records import WorkerId

STEPS: Final = 20
"""A step may take so many times what this worker's steps took lately, however short the time-out is."""
FIRST_STEPS: Final = 10
"""Until a step time is known, a step may take so many times the time-out: the first ones compile and warm up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One local worker, as it is seen now."""

    rank: int
    incarnation: str
    joined: bool
    """It is or was in a view."""
    trains: bool
    """It has passed a boundary."""
    at: float
    """When it passed the last one."""
    excused_until: float = 0.0
    """Its time counts from then on, if that is later."""
    step_time_s: float = 0.0
    """0.0 while it is not known."""

    @property
    def id(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)

    def silence_s(self, now: float) -> float:
        """For how long it has not shown any progress although it should have."""
        return now - max(self.at, self.excused_until) if self.trains else 0.0


def limit_s(step_time_s: float, timeout_s: float) -> float:
    """How long a worker of this pace may show no progress before it counts as stalled."""
    if step_time_s <= 0:
        return FIRST_STEPS * timeout_s
    return max(timeout_s, STEPS * step_time_s)


def is_stalled(worker: Standing, now: float, timeout_s: float) -> bool:
    return worker.silence_s(now) > limit_s(worker.step_time_s, timeout_s)


@dataclass(frozen=True, slots=True)
class Nomination:
    """Whom the candidate names, and what came before. `passed` holds those who have led, or would have led, and were
    passed over because they stalled, each with the boundary that it had passed last: it is over when they move on."""

    worker: WorkerId
    passed: Mapping[WorkerId, float] = field(default_factory=dict)
    yielded: int = 0
    """How often it has made way since every worker of the node has been passed over; 0 where one has not."""


def nominate(
    before: Nomination | None,
    workers: Iterable[Standing],
    now: float,
    *,
    timeout_s: float,
    leads: bool,
    rivals: bool,
) -> Nomination | None:
    """Whom to name now; None when nobody is here. `leads`: our candidate leads the run. `rivals`: another node's
    candidate stands that has a worker which was not passed over.

    Promise: who is named stays named while it lives and goes on, so leadership moves only for a reason; a leader that
    stalls is passed over once, so all of a run that wait for each other have each led for a while in the end, and the
    last one goes on leading: somebody always leads. Limit: who of those that wait holds up the others cannot be told.
    """
    here = {worker.id: worker for worker in workers}
    if not here:
        return None
    stalled = {who for who, worker in here.items() if is_stalled(worker, now, timeout_s)}
    known = before.passed if before is not None else {}
    passed: Mapping[WorkerId, float] = {who: at for who, at in known.items() if who in stalled and here[who].at == at}
    healthy = [worker for who, worker in here.items() if who not in stalled]
    if before is None or before.worker not in here:
        rest = [worker for who, worker in here.items() if who not in passed]
        return Nomination(_first(healthy or rest or here.values()), passed)
    if before.worker not in stalled:
        named = before.worker if here[before.worker].joined else _first(healthy)
        return Nomination(named, passed, before.yielded if leads else 0)
    if healthy:
        return Nomination(_first(healthy), _with(passed, here[before.worker]))
    if not leads:
        return replace(before, passed=passed)  # nobody here would be any better
    passed = _with(passed, here[before.worker])
    rest = [worker for who, worker in here.items() if who not in passed]
    if rest:
        return Nomination(_first(rest), passed)
    return Nomination(before.worker, passed, before.yielded + rivals)


def _first(workers: Iterable[Standing]) -> WorkerId:
    """Of those who train the lowest rank, else of all."""
    return min(workers, key=lambda worker: (not worker.joined, worker.rank)).id


def _with(passed: Mapping[WorkerId, float], worker: Standing) -> Mapping[WorkerId, float]:
    return {**passed, worker.id: worker.at}
