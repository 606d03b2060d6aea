"""Which of a node's workers is stalled, and which one the node's candidate names. Pure.

All times are seconds on the monotonic clock, which the agent and its workers share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from instep.protocol.records import WorkerId

STEPS: Final = 20
"""A step may take so many times this worker's recent step time, however short the timeout is."""
FIRST_STEPS: Final = 10
"""Until the step time is known, a step may take so many times the timeout: the first steps compile and warm up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerProgress:
    """One local worker at this moment."""

    rank: int
    incarnation: str
    joined: bool
    """It is, or was, in a view."""
    trains: bool
    """It has passed a boundary."""
    at: float
    """The time of its last boundary."""
    excused_until: float = 0.0
    """Its stall time starts here if that is later."""
    step_time_s: float = 0.0
    """0.0 while it is unknown."""

    @property
    def id(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)

    def silence_s(self, now: float) -> float:
        """How long it has made no progress although it should have."""
        return now - max(self.at, self.excused_until) if self.trains else 0.0


def limit_s(step_time_s: float, timeout_s: float) -> float:
    """How long a worker with this step time may make no progress before it counts as stalled."""
    if step_time_s <= 0:
        return FIRST_STEPS * timeout_s
    return max(timeout_s, STEPS * step_time_s)


def is_stalled(worker: WorkerProgress, now: float, timeout_s: float) -> bool:
    return worker.silence_s(now) > limit_s(worker.step_time_s, timeout_s)


@dataclass(frozen=True, slots=True)
class Nomination:
    """The worker that the candidate names, and the history. `passed`: workers that were passed over because they
    stalled, each with the time of its last boundary. It no longer counts after the worker moves on."""

    worker: WorkerId
    passed: Mapping[WorkerId, float] = field(default_factory=dict)
    yielded: int = 0
    """How often the node has yielded since all its workers were passed over; 0 if one has not been."""


def nominate(
    before: Nomination | None,
    workers: Iterable[WorkerProgress],
    now: float,
    *,
    timeout_s: float,
    leads: bool,
    rivals: bool,
) -> Nomination | None:
    """The worker to name now; None if there is none. `leads`: our candidate leads the run. `rivals`: another node
    has a candidate with a worker that was not passed over.

    Promise: the named worker stays the same while it lives and makes progress. A stalled leader is passed over once:
    ranks that wait for each other each lead for a while, and the last one keeps the lead, so there is always a
    leader. Limit: it cannot tell which of the waiting ranks blocks the others.
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
        return replace(before, passed=passed)  # no worker here would be better
    passed = _with(passed, here[before.worker])
    rest = [worker for who, worker in here.items() if who not in passed]
    if rest:
        return Nomination(_first(rest), passed)
    return Nomination(before.worker, passed, before.yielded + rivals)


def _first(workers: Iterable[WorkerProgress]) -> WorkerId:
    """The lowest rank of those that train, else of all."""
    return min(workers, key=lambda worker: (not worker.joined, worker.rank)).id


def _with(passed: Mapping[WorkerId, float], worker: WorkerProgress) -> Mapping[WorkerId, float]:
    return {**passed, worker.id: worker.at}
