"""A run with a tuner: what the run reports becomes samples, `decide` decides, and the run does it at a gate."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.tuner.world import RANKS, STEPS, Case, Record, World
from instep.tuner.decide import decide
from instep.tuner.sample import (
    GRAD_NORM,
    LOSS,
    MAX_POINTS,
    Checkpoint,
    JournalOutcome,
    Parameter,
    Past,
    Point,
    Sample,
    Window,
)
from instep.tuner.state import State, initial
from instep.tuner.verdict import Action, Verdict

REPORT_S = 1.0
"""A node reports so often, and at once when a value is not finite."""
ANSWER_S = 0.5
"""From a report until the plan of the tuner's action is open."""
ARMING_STEPS = 3
"""From there to its gate."""
TUNER = "tuner"
MOST_STEPS = 3 * STEPS
"""A run that needs more steps has not been recovered."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a step takes. It determines how many steps a report covers, and how late an action is."""

    step_time_s: float = 0.25

    @property
    def report_steps(self) -> int:
        return max(1, round(REPORT_S / self.step_time_s))

    @property
    def gate_steps(self) -> int:
        return ARMING_STEPS + math.ceil(ANSWER_S / self.step_time_s)


@dataclass(frozen=True, slots=True)
class Done:
    """An action that was carried out."""

    id: str
    kind: str
    rule: str
    decided: int
    suspect: int
    gate: int
    checkpoint: str | None
    skipped: int


@dataclass(frozen=True, slots=True)
class Firing:
    """A rule that began to fire, as the report up to `step` showed."""

    rule: str
    step: int
    ran: int
    suspect: int


@dataclass(frozen=True, slots=True)
class Waits:
    """An action before its gate."""

    gate: int
    """In steps run."""
    plans: int
    """How many plans there were when it was decided: a newer one makes it fail."""
    action: Action


@dataclass(slots=True)
class Simulation:
    """One run and its tuner."""

    world: World
    state: State
    pace: Pace = Pace()
    records: list[Record] = field(default_factory=list)
    """All steps, in the order in which they were run."""
    firings: list[Firing] = field(default_factory=list)
    actions: list[Done] = field(default_factory=list)
    paused: bool = False
    verdict: Verdict | None = None
    _unsent: list[Record] = field(default_factory=list)
    _waits: Waits | None = None
    _journal: list[Past] = field(default_factory=list)

    @classmethod
    def of(cls, case: Case, seed: int, *, acts: bool = True, pace: Pace = Pace()) -> Simulation:
        return cls(World(case, seed), initial(armed=("all",) if acts else ()), pace)

    def fork(self, case: Case, *, acts: bool = True) -> Simulation:
        """A copy that continues as another case."""
        other = copy.copy(self)
        other.world = self.world.become(case)
        other.state = replace(self.state, armed=self.state.armed if acts else ())
        other.records, other.firings, other.actions = list(self.records), list(self.firings), list(self.actions)
        other._unsent, other._journal = list(self._unsent), list(self._journal)
        return other

    def run(self, until: int = STEPS) -> None:
        """Runs until the step `until`, or until the tuner pauses the run."""
        while self.world.step < until and self.world.run < MOST_STEPS and not self.paused:
            if self._waits is not None and self.world.run >= self._waits.gate:
                self._carry_out(self._waits.action, overtaken=self.world.plans != self._waits.plans)
                continue
            record = self.world.advance()
            if self._unsent and record.step <= self._unsent[-1].step:
                self._report(late=True)
            self.records.append(record)
            self._unsent.append(record)
            bad = record.reported and not all(map(math.isfinite, (*record.measured.losses, record.measured.grad_norm)))
            if bad or self.world.evaluating or len(self._unsent) >= self.pace.report_steps:
                self._report()

    def _report(self, *, late: bool = False) -> None:
        """`late`: the run has gone back since these steps, and the tuner does not know it yet."""
        sample = self._sample()
        self._unsent.clear()
        if late:
            sample = replace(sample, events=(), journal=())
        else:
            self.world.events.clear()
            self._journal.clear()
        self.world.evaluating = False
        self.state, self.verdict = decide(self.state, sample)
        self.world.pinned = frozenset(self.verdict.pins)
        for rule in self.verdict.rules:
            if rule.began and rule.detection is not None:
                step = sample.points[-1].last_step
                self.firings.append(Firing(rule.rule, step, self.world.run, rule.detection.suspect))
        if self.verdict.action is not None:
            self._waits = Waits(self.world.run + self.pace.gate_steps, self.world.plans, self.verdict.action)

    def _carry_out(self, action: Action, *, overtaken: bool) -> None:
        """What the ranks do at the gate. It fails if a person's plan came first."""
        self._waits = None
        world = self.world
        if overtaken:
            self._journal.append(_past(action, "failed"))
            return
        news = {name: float(new) for name, (_, new) in action.changes.items() if isinstance(new, int | float)}
        gate = world.step
        if action.kind == "pause":
            self.paused = True
        elif action.kind == "recover":
            assert action.checkpoint is not None
            if action.offset is not None:
                news[action.offset] = world.values[action.offset] + action.raise_offset
            world.restore(action.checkpoint, news, author=TUNER, action=action.id)
        else:
            world.set(news, author=TUNER, action=action.id)
        self._journal.append(_past(action, "done"))
        skipped = action.raise_offset if action.kind == "recover" else 0
        self.actions.append(
            Done(action.id, action.kind, action.rule, action.step, action.suspect, gate, action.checkpoint, skipped)
        )

    def _sample(self) -> Sample:
        world = self.world
        return Sample(
            points=points_of(self._unsent),
            view=world.view,
            world_size=RANKS,
            reporting=RANKS,
            age_s=REPORT_S / 2,
            step_time_s=self.pace.step_time_s,
            parameters={
                "lr": Parameter(world.values["lr"], minimum=0.0, maximum=1.0),
                "clip": Parameter(world.values["clip"], minimum=0.0),
                "weight_decay": Parameter(world.values["weight_decay"], minimum=0.0),
                "skip": Parameter(int(world.values["skip"]), minimum=0, data_offset=True),
            },
            checkpoints=tuple(Checkpoint(saved.id, saved.step) for saved in world.checkpoints.all),
            events=tuple(world.events),
            journal=tuple(self._journal),
            evaluating=world.evaluating,
        )


def points_of(records: Sequence[Record]) -> tuple[Point, ...]:
    """What a report says of these steps: at most MAX_POINTS points."""
    runs: list[list[Record]] = []
    width = math.ceil(len(records) / MAX_POINTS)
    for record in records:
        if not runs or len(runs[-1]) >= width or record.step != runs[-1][-1].step + 1:
            runs.append([])
        runs[-1].append(record)
    return tuple(_point(run) for run in runs)


def _point(records: Sequence[Record]) -> Point:
    reported = [record for record in records if record.reported]
    losses = [(record.step, rank, loss) for record in reported for rank, loss in enumerate(record.measured.losses)]
    norms = [(record.step, rank, record.measured.grad_norm) for record in reported for rank in range(RANKS)]
    metrics = {LOSS: _window(losses), GRAD_NORM: _window(norms)} if reported else {}
    return Point(records[0].step, records[-1].step, metrics)


def _window(values: Sequence[tuple[int, int, float]]) -> Window:
    finite = [item for item in values if math.isfinite(item[2])]
    bad = [item for item in values if not math.isfinite(item[2])]
    if not finite:
        return Window(0, nonfinite=len(bad), first_bad=bad[0][0], worst_rank=bad[0][1])
    largest = max(finite, key=lambda item: item[2])
    return Window(
        len(finite),
        mean=math.fsum(item[2] for item in finite) / len(finite),
        min=min(item[2] for item in finite),
        max=largest[2],
        last=finite[-1][2],
        nonfinite=len(bad),
        first_bad=bad[0][0] if bad else None,
        worst_rank=bad[0][1] if bad else largest[1],
        steps=len({item[0] for item in values}),
    )


def _past(action: Action, outcome: JournalOutcome) -> Past:
    return Past(
        id=action.id,
        rule=action.rule,
        kind=action.kind,
        step=action.step,
        suspect=action.suspect,
        outcome=outcome,
        checkpoint=action.checkpoint,
        checkpoint_step=action.checkpoint_step,
        changes=action.changes,
        skipped_to=action.skipped_to,
    )
