"""A run that exists in memory only: it has losses, checkpoints, a learning rate and data, and it obeys the tuner."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from instep.scalar import Scalar
from instep.tuner.decide import decide
from instep.tuner.rules import Rules
from instep.tuner.sample import Checkpoint, Event, Parameter, Past, Point, Sample, Window
from instep.tuner.state import State, initial
from instep.tuner.verdict import Action, Verdict

Fault = Callable[["SimulatedRun"], float]
"""How much damage the next step does to the weights; the loss is multiplied by exp(damage)."""


def window(*values: float, rank: int | None = None, step: int | None = None) -> Window:
    """The window of these values, as a report would have it."""
    good = [value for value in values if math.isfinite(value)]
    bad = len(values) - len(good)
    first_bad = step if bad else None
    if not good:
        return Window(0, nonfinite=bad, first_bad=first_bad, worst_rank=rank)
    return Window(len(good), sum(good) / len(good), min(good), max(good), good[-1], bad, first_bad, rank)


def point(step: int, last: int | None = None, **metrics: float) -> Point:
    return Point(
        step, step if last is None else last, {name: window(value, step=step) for name, value in metrics.items()}
    )


@dataclass
class SimulatedRun:
    """Steps, their losses, and what the tuner may change. Each point covers `resolution` steps."""

    fault: Fault = lambda run: 0.0
    seed: int = 0
    resolution: int = 1
    noise: float = 0.03
    every: int = 50
    values: dict[str, Scalar] = field(default_factory=lambda: {"lr": 0.01, "skip": 0})
    maximum: Mapping[str, float] = field(default_factory=dict)
    step: int = -1
    damage: float = 0.0
    paused: bool = False
    checkpoints: dict[str, tuple[int, float]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    journal: list[Past] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    """The data indices in the order in which they were read."""
    plans: int = 0
    context: Callable[[Sample], Sample] = lambda sample: sample
    """Changes each sample before it is seen."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def index(self) -> int:
        """The data index of the current step."""
        skip = self.values.get("skip", 0)
        return self.step + (skip if isinstance(skip, int) else 0)

    def train(self) -> tuple[float, float]:
        """Runs one step; returns loss and gradient norm. The loss is that of the weights before the step's update."""
        self.step += 1
        self.read.append(self.index)
        more = self.fault(self)
        loss = 2.5 * math.exp(self.damage + self.random.gauss(0, self.noise))
        self.damage = min(self.damage + more, 3.0) if math.isfinite(more) else math.nan
        if self.step % self.every == self.every - 1:
            self.checkpoints[f"{self.step}-{len(self.checkpoints)}"] = (self.step, self.damage)
        return loss, math.exp((20 * more if math.isfinite(more) else math.nan) + self.random.gauss(0, 0.2))

    def sample(self, steps: int = 1) -> Sample:
        points: list[Point] = []
        while steps > 0 and not self.paused:
            first, losses, norms = self.step + 1, [], []
            for _ in range(min(self.resolution, steps)):
                loss, norm = self.train()
                losses.append(loss)
                norms.append(norm)
            steps -= self.resolution
            metrics = {"loss": window(*losses, step=first), "grad_norm": window(*norms, step=first)}
            points.append(Point(first, self.step, metrics))
        events, self.events = tuple(self.events), []
        journal, self.journal = tuple(self.journal), []
        return self.context(
            Sample(
                points=tuple(points),
                parameters=self.parameters,
                checkpoints=tuple(Checkpoint(name, step) for name, (step, _) in self.checkpoints.items()),
                events=events,
                journal=journal,
                paused=self.paused,
            )
        )

    @property
    def parameters(self) -> dict[str, Parameter]:
        return {
            name: Parameter(value, 0, self.maximum.get(name), data_offset=name == "skip")
            for name, value in self.values.items()
        }

    def change(self, action: str | None = None, **values: Scalar) -> None:
        """A committed plan, by a person or by an action of the tuner."""
        self.plans += 1
        changes = {name: (self.values[name], value) for name, value in values.items()}
        self.values.update(values)
        self.events.append(
            Event(kind="plan", step=self.step + 1, plan=self.plans, changes=changes, action=action, author="anna")
        )

    def restore(self, checkpoint: str, action: str | None = None) -> None:
        self.plans += 1
        self.step, self.damage = self.checkpoints[checkpoint]
        self.events.append(
            Event(kind="restored", step=self.step + 1, plan=self.plans, checkpoint=checkpoint, action=action)
        )

    def obey(self, action: Action) -> None:
        """Carries out an action, as a driver would."""
        for name, (old, new) in action.changes.items():
            assert self.values[name] == old
            self.values[name] = new
        if action.offset is not None:
            skip = self.values[action.offset]
            assert isinstance(skip, int)
            self.values[action.offset] = skip + action.raise_offset
        if action.kind == "pause":
            self.paused = True
            self.journal.append(past_of(action))
        elif action.checkpoint is not None:
            self.restore(action.checkpoint, action.id)
            assert action.offset is None or self.index + 1 == action.skipped_to
        else:
            self.change(action.id)


def past_of(action: Action) -> Past:
    return Past(
        id=action.id,
        rule=action.rule,
        kind=action.kind,
        step=action.step,
        suspect=action.suspect,
        outcome="done",
        checkpoint=action.checkpoint,
        checkpoint_step=action.checkpoint_step,
        changes=action.changes,
        skipped_to=action.skipped_to,
    )


@dataclass
class Tuned:
    """A simulated run under a tuner."""

    run: SimulatedRun
    rules: Rules = field(default_factory=Rules)
    armed: tuple[str, ...] = ("all",)
    actions: list[Action] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    obeys: bool = True

    def __post_init__(self) -> None:
        self.state: State = initial(self.rules, self.armed)

    def steps(self, count: int, each: int = 1) -> Tuned:
        """Runs so many steps, repeated ones included, `each` of them in one sample."""
        for _ in range(0, count, each):
            self.see(self.run.sample(each))
        return self

    def see(self, sample: Sample) -> Verdict:
        self.state, verdict = decide(self.state, sample)
        self.verdicts.append(verdict)
        if verdict.action is not None:
            self.actions.append(verdict.action)
            if self.obeys:
                self.run.obey(verdict.action)
        return verdict

    @property
    def kinds(self) -> list[str]:
        return [action.kind for action in self.actions]

    def brakes(self, rule: str) -> list[str]:
        """The names of the brakes that hold the rule now."""
        return [brake.name for found in self.verdicts[-1].rules if found.rule == rule for brake in found.brakes]

    def status(self, rule: str) -> str:
        return next(found.status for found in self.verdicts[-1].rules if found.rule == rule)


def bad_data(first: int, last: int, by: float = 1.3) -> Fault:
    """Batches that ruin the loss while they are read: random targets, say. The weights recover by themselves."""

    def fault(run: SimulatedRun) -> float:
        return (by if first <= run.index <= last else 0.0) - run.damage

    return fault


def too_high_lr(limit: float, by: float = 0.1) -> Fault:
    """Each step with a learning rate above `limit` ruins the weights a little more."""

    def fault(run: SimulatedRun) -> float:
        lr = run.values["lr"]
        return by if isinstance(lr, float) and lr > limit else 0.0

    return fault


def settings(**brakes: float) -> Rules:
    """The default rules with other brakes."""
    rules = Rules()
    return rules.model_copy(update={"brakes": rules.brakes.model_copy(update=brakes)})


__all__ = ["SimulatedRun", "Tuned", "bad_data", "past_of", "point", "settings", "too_high_lr", "window"]
