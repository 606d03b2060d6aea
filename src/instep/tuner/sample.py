"""What the tuner sees of a run: aggregated metrics by steps, and what has happened since the last sample.

A driver builds one `Sample` about once a second. All durations are measured by the driver: the decision reads no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from instep.scalar import Scalar

LOSS: Final = "loss"
GRAD_NORM: Final = "grad_norm"
LOSS_SCALE: Final = "loss_scale"
DATA_WAIT: Final = "data_wait_s"
COMPUTE: Final = "compute_s"
GPU_UTILIZATION: Final = "gpu_utilization"
"""Share of time in which any kernel ran, 0 to 1."""
SM_ACTIVITY: Final = "gpu_sm_activity"
"""Share of the streaming multiprocessors that were active, 0 to 1: the better figure, where the driver has it."""

MAX_POINTS: Final = 32
"""Points of one sample at most. A report covers more steps than that with points of several steps."""
MAX_EVENTS: Final = 100
MAX_CHECKPOINTS: Final = 50


@dataclass(frozen=True, slots=True)
class Window:
    """One metric over a range of steps and over all ranks that reported it.

    `count` and the four figures cover finite values only; the figures are None if there is none.
    """

    count: int
    mean: float | None = None
    min: float | None = None
    max: float | None = None
    last: float | None = None
    nonfinite: int = 0
    """How many values were infinite or not a number."""
    first_bad: int | None = None
    """The first step with a value that is not finite."""
    worst_rank: int | None = None
    """The rank of the first value that is not finite; else the rank of `max`."""
    steps: int | None = None
    """How many steps have a value, on the rank with the most; None: all steps of the point. A script that reports its
    loss every 10 steps has fewer values than steps."""


@dataclass(frozen=True, slots=True)
class Point:
    """The metrics of steps `first_step` to `last_step`. `metrics` holds only what was reported in them."""

    first_step: int
    last_step: int
    metrics: Mapping[str, Window] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1


@dataclass(frozen=True, slots=True)
class Parameter:
    """A hyperparameter: its agreed value, and what the schema allows. The bounds themselves are allowed values, unless
    they are exclusive in the schema, which only the leader checks."""

    value: Scalar
    minimum: float | None = None
    maximum: float | None = None
    fixed: bool = False
    """Whether it cannot be changed while the run trains."""
    data_offset: bool = False
    """Whether it is the number of batches that the script passes over."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A committed checkpoint. A restore continues with `step + 1`."""

    id: str
    step: int
    finite: bool | None = None
    """Whether all of its tensors are finite; None if nobody has looked."""


EventKind: TypeAlias = Literal["plan", "view", "restored"]
"""plan: a plan was committed, with changes of values or a command. view: another view began to train. restored: the run
went back to a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the run since the last sample.

    A recovery (one plan that sets values and goes back to a checkpoint) is one event of kind `restored`.
    """

    kind: EventKind
    step: int
    """plan: its gate. view: its first step. restored: the step that the ranks continue with."""
    plan: int | None = None
    """The number of the plan."""
    command: str | None = None
    """The command that the plan carries; None for a change of values."""
    checkpoint: str | None = None
    changes: Mapping[str, tuple[Scalar, Scalar]] = field(default_factory=dict)
    """By name, the value before and the new one."""
    author: str | None = None
    action: str | None = None
    """The id of the tuner's action that it carries out; None for everything that is not the tuner's."""


ActionKind: TypeAlias = Literal["take_back", "recover", "cut_lr", "revert", "pause"]
"""take_back: sets back what a recent change has set. recover: goes back to a checkpoint, sets values back, and passes
over data. revert: sets back what a cut_lr of the tuner has set. An alert is not an action: nothing is written."""

JournalOutcome: TypeAlias = Literal["open", "done", "failed", "rejected"]
"""open: not known yet. failed: it was not applied, for example because a newer plan came first. rejected: by a
person."""


Judgement: TypeAlias = Literal["verified", "not helped", "unsure"]
"""verified: no rule that asks for an action has fired since. unsure: the run was changed meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """An action of the journal: read when a tuner takes over, and whenever the outcome of an action is known.

    It carries what the brakes count, so a successor has the same budget and restores no checkpoint twice.
    """

    id: str
    rule: str
    kind: ActionKind
    step: int
    """The newest step when it was decided."""
    suspect: int
    """The first suspect step."""
    outcome: JournalOutcome = "open"
    judgement: Judgement | None = None
    checkpoint: str | None = None
    checkpoint_step: int | None = None
    changes: Mapping[str, tuple[Scalar, Scalar]] = field(default_factory=dict)
    """By name, the value before and the new one."""
    skipped_to: int | None = None
    """The first data index that is not passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """All that a decision depends on, besides the state and the rules."""

    points: tuple[Point, ...] = ()
    """In the order of their steps. After a restore the steps jump back."""
    view: int = 0
    world_size: int = 1
    reporting: int = 1
    """Ranks with a report in this view."""
    age_s: float = 0.0
    """Age of the oldest node's report, in seconds."""
    stalled_s: float = 0.0
    """Seconds since the newest step last rose."""
    step_time_s: float | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    checkpoints: tuple[Checkpoint, ...] = ()
    """The newest ones, by step."""
    events: tuple[Event, ...] = ()
    """In the order in which they happened, all before the points."""
    journal: tuple[Past, ...] = ()
    """What is new in the journal of actions; after a take-over all of it."""
    paused: bool = False
    evaluating: bool = False
    """Whether the ranks are alive outside of their step loop."""
    silenced: bool = False
    """Whether a person has switched the tuner off (`instep tune RUN --off`)."""
    others_ill: int = 0
    """Other runs of the namespace in which a rule fires now."""

    @property
    def data_offset(self) -> str | None:
        """The hyperparameter that passes over data; None if the script declares none."""
        return next((name for name, item in self.parameters.items() if item.data_offset), None)
