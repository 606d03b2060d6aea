"""Records of barriers and of the latest figures of a rank."""

from __future__ import annotations

from pydantic import Field

from instep.coordination.records.base import Record


class Waiting(Record):
    """Ranks of a node that wait at one barrier."""

    ranks: tuple[int, ...]
    seen: int = 0
    """The revision of the barrier's last release: it has not let them through. 0 when there is none."""
    after: int = 0
    """Number of the last release that let one of them through, whichever barrier it was."""


class Arrivals(Record):
    """All that a node says of barriers: who of its ranks waits at which one, in `view`."""

    view: int
    waiting: dict[str, Waiting] = Field(default_factory=dict)


class Release(Record):
    """The last time that all ranks of `view` had come to a barrier. Numbers rise over all barriers of a run."""

    view: int
    number: int


class Metrics(Record):
    """The latest report of one rank; may be seconds old, and is dropped when etcd is away."""

    rank: int
    step: int | None = None
    step_time_s: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    actions: tuple[str, ...] | None = None
    """What `instep act` can ask of it: the first 64 names; None while it has not said."""
    restores: bool | None = None
    """Whether it can go back to a checkpoint; None while it has not said."""
    drift: tuple[str, ...] = ()
    """Hyperparameters that its optimizer does not hold as agreed."""
