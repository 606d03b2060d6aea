"""What the tuner has found and what it wants: the result of one decision. `texts.py` puts it into words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from instep.scalar import Scalar
from instep.tuner.sample import ActionKind, Judgement

Evidence: TypeAlias = Literal["gradient", "change", "too easy"]

BrakeName: TypeAlias = Literal[
    "shadow",
    "rule file",
    "silenced",
    "paused",
    "stale",
    "partial",
    "others ill",
    "hold-off",
    "cool-down",
    "open action",
    "budget",
    "last action",
    "no checkpoint",
    "too far back",
    "no data offset",
    "bounds",
    "nothing to set",
    "waits for a person",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What a rule has found."""

    metric: str
    suspect: int
    """The first suspect step."""
    since: int
    """The step at which the rule's condition was first met."""
    last: int
    """The newest step at which it was met."""
    figure: float | None = None
    """What the rule computes, at its worst: a z, a share, a count."""
    limit: float | None = None
    value: float | None = None
    """The metric's value, at its worst; None if it is not finite."""
    normal: float | None = None
    """What it was before."""
    rank: int | None = None
    """The worst rank."""
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Brake:
    """Why an action is held back. `figure` and `limit` say how far from being released it is."""

    name: BrakeName
    figure: float | str | None = None
    limit: float | str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A change of the run: one agreed plan, or a pause."""

    id: str
    """`<step>-<number>`: the newest step when it was decided, and how many actions came before."""
    kind: ActionKind
    rule: str
    step: int
    suspect: int
    reason: str
    """One sentence for the history."""
    ask: bool = False
    """Whether a person has to approve it first."""
    changes: Mapping[str, tuple[Scalar, Scalar]] = field(default_factory=dict)
    """Values to set, besides the data offset: by name, the agreed value and the new one. If one of them is no longer
    agreed, the action has failed."""
    takes_back: tuple[int, ...] = ()
    """The plans whose changes it takes back."""
    checkpoint: str | None = None
    checkpoint_step: int | None = None
    offset: str | None = None
    """The data offset; None if none is declared."""
    raise_offset: int = 0
    """By how many batches the data offset rises, from its agreed value."""
    skipped_to: int | None = None
    """The first data index that is read after the checkpoint: `checkpoint_step + 1` plus the new offset."""


Status: TypeAlias = Literal["quiet", "watching", "fired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How much of its confirmation a rule has. `lacks` says what else is missing."""

    have: int = 0
    need: int = 0
    lacks: Literal["steps", "hits", "evidence", "reference", "reports", "never finite"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleVerdict:
    """One rule at the end of a sample."""

    rule: str
    kind: str
    status: Status
    armed: bool
    began: bool = False
    """Whether it fires since this sample: the moment for a notification."""
    progress: Progress = field(default_factory=Progress)
    detection: Detection | None = None
    wants: Action | None = None
    """None for an alert, and for what only corroborates others."""
    brakes: tuple[Brake, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of an action, some steps after it."""

    id: str
    judgement: Judgement
    before: float | None = None
    """Level of the loss before the first suspect step."""
    peak: float | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    step: int
    """The newest step of the run; -1 before the first report."""
    rules: tuple[RuleVerdict, ...] = ()
    action: Action | None = None
    """What is to be done now: at most one action. Nothing holds it back."""
    judged: tuple[Judged, ...] = ()
    budget_left: int = 0
    suspect: int | None = None
    """The first suspect step, while a rule that doubts the weights asks for an action; later checkpoints are too."""
    pins: tuple[str, ...] = ()
    """Checkpoints that must be kept for this recovery and for the next one."""
    unreported: tuple[str, ...] = ()
    """Metrics that rules watch and nobody has reported."""
