"""Records of checkpoints: what is committed, written, and resumed from."""

from __future__ import annotations

from pydantic import Field

from instep.protocol.records.base import Record


class FailedSave(Record):
    """A checkpoint that could not be saved. Training continued without it."""

    step: int = Field(ge=0)
    rank: int
    host: str = ""
    text: str
    at: str | None = None
    """Wall clock of the saver's host, for display only."""


class FailedSaves(Record):
    """The last 20, oldest first."""

    saves: tuple[FailedSave, ...] = ()


class Resume(Record):
    """The checkpoint that is offered to the ranks of a view; if `final`, the one from which all of them resume.

    `id` is None if none can be used; `reasons` says by id why others cannot.
    """

    view: int
    id: str | None = None
    final: bool = False
    reasons: dict[str, str] = Field(default_factory=dict)


class Verified(Record):
    """Ranks of a node that found checkpoint `id` good, or the problem that one of them found."""

    view: int
    id: str
    ranks: tuple[int, ...] = ()
    problem: str | None = None
