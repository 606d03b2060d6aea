"""Records of barriers and of the latest figures of a rank."""

from __future__ import annotations

from pydantic import Field

from instep.protocol.records.base import Record


class Waiting(Record):
    """Ranks of a node that wait at one barrier."""

    ranks: tuple[int, ...]
    seen: int = 0
    """The revision of the barrier's last release, which does not apply to them; 0 if there is none."""
    after: int = 0
    """Number of the last release that one of them has seen, at any barrier."""


class Arrivals(Record):
    """A node's report: which of its ranks wait at which barrier, in `view`."""

    view: int
    waiting: dict[str, Waiting] = Field(default_factory=dict)


class Release(Record):
    """The last time that all ranks of `view` had reached a barrier. Numbers rise across all barriers of a run."""

    view: int
    number: int


class Metrics(Record):
    """The latest figures of one rank. May be seconds old; dropped while etcd is unavailable."""

    rank: int
    step: int | None = None
    step_time_s: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    actions: tuple[str, ...] | None = None
    """The actions that `instep act` can call on it: the first 64 names; None until it has reported them."""
    restores: bool | None = None
    """Whether it can return to a checkpoint; None until it has reported it."""
    drift: tuple[str, ...] = ()
    """Hyperparameters whose value in its optimizer differs from the agreed one."""
