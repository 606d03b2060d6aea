"""The trials: each seed trains one run for each set of hyperparameters, and every fault continues a copy of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.tuner.detectors import DETECTORS, Detector
from benchmarks.tuner.simulation import Done, Firing, Pace, Simulation
from benchmarks.tuner.world import STEPS, Case, Record, World

TUNER = "tuner"
NEAR = 0.05
"""A run has recovered if its loss on held-out text ends so near to its twin's, in nats."""
_FORK_BEFORE = 2
"""Steps before the first faulty one at which the copies are made: some faults prepare themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultTrial:
    """One fault with one seed: with a tuner that acts, with one that only watches, and the twin without the fault."""

    fault: str
    seed: int
    first: int
    """The first step of the fault."""
    twin: float
    treated: float
    untreated: float
    """The loss on held-out text at the end; infinite where it is not finite."""
    paused: bool
    extra_steps: int
    actions: tuple[Done, ...]
    firings: tuple[Firing, ...]
    """Of the tuner that acts."""
    delays: dict[str, int | None]
    """By detector, the steps from the first faulty one to the alarm in the untreated run; None if it raised none."""

    @property
    def recovered(self) -> bool:
        return not self.paused and self.treated <= self.twin + NEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthyTrial:
    """One healthy run with a tuner that may act."""

    kind: str
    seed: int
    steps: int
    actions: tuple[Done, ...]
    firings: tuple[Firing, ...]
    alarms: dict[str, int]
    """By detector, how often it began to raise an alarm."""


def fault_trials(seed: int, faults: Sequence[Case], pace: Pace) -> Iterator[FaultTrial | HealthyTrial]:
    """One trial of each fault; and the twins, which are healthy runs."""
    twins: dict[Case, tuple[Simulation, float]] = {}
    for fault in faults:
        kind = fault.twin
        if kind not in twins:
            base = Simulation.of(kind, seed, pace=pace)
            base.run(fork_point(base.world))
            whole = base.fork(kind)
            whole.run()
            twins[kind] = base, whole.world.evaluate()
            yield _healthy(kind, whole)
        base, loss = twins[kind]
        yield _fault(fault, base, loss)


def fork_point(world: World) -> int:
    """The step before which the copies for the faults are made."""
    return world.first - _FORK_BEFORE


def healthy_trial(seed: int, kind: Case, pace: Pace) -> HealthyTrial:
    run = Simulation.of(kind, seed, pace=pace)
    run.run()
    return _healthy(kind, run)


def _fault(fault: Case, base: Simulation, twin: float) -> FaultTrial:
    treated, untreated = base.fork(fault), base.fork(fault, acts=False)
    treated.run()
    untreated.run()
    before = len(base.firings)
    begins = len(base.records) + _FORK_BEFORE
    delays = {detector.name: _delay(detector, untreated.records, begins) for detector in DETECTORS}
    fired = next((firing for firing in untreated.firings[before:] if firing.rule != "grad"), None)
    delays[TUNER] = None if fired is None else fired.ran - begins - 1
    return FaultTrial(
        fault=fault.name,
        seed=base.world.seed,
        first=base.world.first,
        twin=twin,
        treated=treated.world.evaluate(),
        untreated=untreated.world.evaluate(),
        paused=treated.paused or treated.world.step < STEPS,
        extra_steps=treated.world.run - STEPS,
        actions=tuple(treated.actions),
        firings=tuple(treated.firings[before:]),
        delays=delays,
    )


def _healthy(kind: Case, run: Simulation) -> HealthyTrial:
    return HealthyTrial(
        kind=kind.name,
        seed=run.world.seed,
        steps=len(run.records),
        actions=tuple(run.actions),
        firings=tuple(run.firings),
        alarms={detector.name: _alarms(detector, run.records) for detector in DETECTORS},
    )


def _raised(detector: Detector, records: Sequence[Record]) -> list[bool]:
    alarm = detector.make()
    return [alarm(record.loss, record.measured.grad_norm) for record in records]


def _delay(detector: Detector, records: Sequence[Record], begins: int) -> int | None:
    raised = _raised(detector, records)
    return next((index - begins for index in range(begins, len(raised)) if raised[index]), None)


def _alarms(detector: Detector, records: Sequence[Record]) -> int:
    raised = _raised(detector, records)
    return sum(now and not before for now, before in zip(raised, [False, *raised], strict=False))
