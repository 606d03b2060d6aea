"""Records of checkpoints: what is committed, written, and resumed from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from instep.coordination.records.base import Record
from instep.scalar import Scalar


class Manifest(Record):
    """A committed checkpoint. A file in its directory lists its files with their checksums; `digest` is the sha256 of
    that file: an exchange of either is noticed."""

    id: str = Field(pattern=r"^[0-9]{1,19}-[0-9]{1,19}$")
    """`<step>-<token>`."""
    step: int = Field(ge=0)
    """The last step that it includes: a run resumes with the next one."""
    token: int
    path: str
    """The directory, as the saver's host names it."""
    layout: Literal["plain", "sharded", "custom"] = "custom"
    files: int = 0
    bytes: int = 0
    digest: str
    view: int
    world_size: int
    config: dict[str, Scalar] = Field(default_factory=dict)
    plan: int = 0
    """The newest plan that was agreed on at `step`."""
    rank: int
    host: str
    node: str
    duration_s: float
    lineage: tuple[str, ...] = ()
    """Ids of the checkpoints that its training resumed from, the newest first: the pointer that it replaced and the
    lineage of that one, 20 at most. A fall-back follows it, and never uses a checkpoint that the run has left."""
    committed_at: str
    """Wall clock of the saver's host, for display only."""


class Pointer(Record):
    """The newest committed checkpoint, and how long saving it took."""

    id: str
    step: int
    token: int
    view: int = 0
    plan: int = 0
    """View and plan of its manifest: the training that it belongs to."""
    duration_s: float = 0.0


class Saving(Record):
    """A checkpoint that is being written. Limit: it stays if its saver dies; then the leader has another token."""

    id: str
    step: int
    token: int
    rank: int


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
