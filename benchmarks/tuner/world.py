"""A training run as Instep would carry it out: hyperparameters, checkpoints, data by index, restores. No tuner yet."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from benchmarks.tuner.checkpoints import Checkpoints
from benchmarks.tuner.model import Measured, Model, Settings
from benchmarks.tuner.text import Batch, Text, draw, held_out
from instep.tuner.sample import Event

RANKS = 2
STEPS = 600
SAVE_EVERY = 50
FIRST = range(280, 330)
"""Where faults begin: the seed determines the step."""
PERSON = "ann"


@dataclass(frozen=True, slots=True)
class Moment:
    """Which batch is drawn."""

    index: int
    """The step plus the data offset."""
    rank: int
    first: int
    """The index at which the fault, or the change of a healthy run, begins."""
    size: int


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that happens once, `after` steps after the first step of the fault. It does not happen again
    when the step is run again."""

    after: int
    happen: Callable[[World], None]


Spoil = Callable[[Batch, Moment, torch.Generator], Batch]
"""What a fault makes of a batch."""


def prose(moment: Moment, dice: torch.Generator) -> Batch:
    return draw("prose", moment.size, dice)


def warm_up(steps: int) -> Callable[[int], float]:
    return lambda step: min(1.0, (step + 1) / steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a run trains on and with, and what happens to it."""

    name: str
    about: str
    lr: float = 3e-3
    clip: float = 1.0
    weight_decay: float = 0.1
    beta2: float = 0.95
    fp16_scale: float | None = None
    schedule: Callable[[int], float] = field(default_factory=lambda: warm_up(50))
    """What the script multiplies lr with, by step."""
    size: Callable[[int, int], int] = lambda step, first: 8
    """The batch of one rank, by step and first step of the change."""
    draw: Callable[[Moment, torch.Generator], Batch] = prose
    spoil: Spoil | None = None
    incidents: tuple[Incident, ...] = ()
    report_every: int = 1
    """Steps between two reported losses."""
    evaluates_on: Text = "prose"

    @property
    def twin(self) -> Case:
        """The same without the fault."""
        return replace(self, name="twins", about="the runs of the faults, without them", spoil=None, incidents=())


@dataclass(frozen=True, slots=True)
class Record:
    """One step that was run."""

    step: int
    measured: Measured
    reported: bool = True

    @property
    def loss(self) -> float:
        """The mean over the ranks."""
        return math.fsum(self.measured.losses) / len(self.measured.losses)


@dataclass(slots=True)
class World:
    """One run. Its copies continue independently."""

    case: Case
    seed: int
    model: Model = field(init=False)
    values: dict[str, float] = field(init=False)
    step: int = 0
    run: int = 0
    """Steps that were run in all, those run again included."""
    plans: int = 0
    view: int = 1
    evaluating: bool = False
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    pinned: frozenset[str] = frozenset()
    """Checkpoints that are kept although newer ones were saved."""
    events: list[Event] = field(default_factory=list)
    """What nobody has read yet."""
    _happened: int = 0

    def __post_init__(self) -> None:
        self.model = Model(self.seed)
        case = self.case
        self.values = {"lr": case.lr, "clip": case.clip, "weight_decay": case.weight_decay, "skip": 0}

    @property
    def first(self) -> int:
        """The first step of the fault."""
        return FIRST[self.seed % len(FIRST)]

    def become(self, case: Case) -> World:
        """A copy that continues as another case."""
        other = copy.copy(self)
        other.case, other.model = case, Model(self.seed)
        other.model.load(self.model.save())
        other.values, other.checkpoints, other.events = dict(self.values), self.checkpoints.copy(), list(self.events)
        return other

    def advance(self) -> Record:
        """Runs one step."""
        for incident in self.case.incidents[self._happened :]:
            if self.step < self.first + incident.after:
                break
            self._happened += 1
            incident.happen(self)
        step, case, values = self.step, self.case, self.values
        batches = [self._batch(rank) for rank in range(RANKS)]
        settings = Settings(
            lr=values["lr"] * case.schedule(step),
            clip=values["clip"],
            weight_decay=values["weight_decay"],
            beta2=case.beta2,
            fp16_scale=case.fp16_scale,
        )
        measured = self.model.update(batches, settings)
        self.step += 1
        self.run += 1
        if self.step % SAVE_EVERY == 0:
            self.checkpoints.save(step, self.model.save(), self.pinned)
        return Record(step, measured, reported=step % case.report_every == 0)

    def evaluate(self) -> float:
        """The loss on held-out text; infinite if the model is broken."""
        loss = self.model.evaluate(*held_out(self.case.evaluates_on))
        return loss if math.isfinite(loss) else math.inf

    def set(self, news: Mapping[str, float], *, author: str, action: str | None = None) -> None:
        """Carries out a change of values before the next step."""
        self._log("plan", changes=self._change(news), author=author, action=action)

    def restore(
        self, checkpoint: str, news: Mapping[str, float] | None = None, *, author: str, action: str | None = None
    ) -> None:
        """Carries out a restore, with a change of values in the same plan, before the next step."""
        saved = self.checkpoints.go_back(checkpoint)
        self.model.load(saved.state)
        self.step = saved.step + 1
        changes = self._change(news or {})
        self._log("restored", changes=changes, author=author, action=action, checkpoint=checkpoint)

    def replace_rank(self) -> None:
        """A rank was restarted: another view, which continues from the newest checkpoint."""
        newest = self.checkpoints.newest
        self.model.load(newest.state)
        self.step = newest.step + 1
        self.view += 1
        self.events.append(Event(kind="view", step=self.step))

    def _change(self, news: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        changes = {name: (self.values[name], value) for name, value in news.items()}
        self.values.update(news)
        return changes

    def _log(self, kind: str, **facts: object) -> None:
        self.plans += 1
        self.events.append(Event(kind=kind, step=self.step, plan=self.plans, **facts))  # type: ignore[arg-type]

    def _batch(self, rank: int) -> Batch:
        index = self.step + int(self.values["skip"])
        moment = Moment(index, rank, self.first, self.case.size(self.step, self.first))
        dice = torch.Generator().manual_seed((self.seed * 1_000_003 + index) * RANKS + rank)
        batch = self.case.draw(moment, dice)
        return batch if self.case.spoil is None else self.case.spoil(batch, moment, dice)
