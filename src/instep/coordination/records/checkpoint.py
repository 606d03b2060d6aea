"""Records of checkpoints: what is committed, written, and resumed from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from instep.coordination.records.base import Record
from instep.scalar import Scalar


class Manifest(Record):
    """A committed checkpoint. Its files are listed, with their sums, in a file of its own beside them: `digest` is that
    file's sha256, so that neither can be exchanged unnoticed."""

    id: str = Field(pattern=r"^[0-9]{1,19}-[0-9]{1,19}$")
    """`<step>-<token>`."""
    step: int = Field(ge=0)
    """The step whose update it holds: a run goes on with the next one."""
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
    """The newest plan agreed on at `step`."""
    rank: int
    host: str
    node: str
    duration_s: float
    lineage: tuple[str, ...] = ()
    """Ids of the checkpoints that its training went on from, the newest first: the pointer that it replaced, and that
    one's lineage, 20 at most. A fall-back follows it, never what a run has been taken back from."""
    committed_at: str
    """Wall clock of the saver's host, for people only."""


class Pointer(Record):
    """The newest committed checkpoint, and what it took to save it."""

    id: str
    step: int
    token: int
    view: int = 0
    plan: int = 0
    """Of its manifest: they tell which training it belongs to."""
    duration_s: float = 0.0


class Saving(Record):
    """A checkpoint that is being written. Limit: it stays when its saver dies; the leader has another token then."""

    id: str
    step: int
    token: int
    rank: int


class FailedSave(Record):
    """A checkpoint that could not be saved; training continued without it."""

    step: int = Field(ge=0)
    rank: int
    host: str = ""
    text: str
    at: str | None = None
    """Wall clock of the saver's host, for people only."""


class FailedSaves(Record):
    """The last 20, oldest first."""

    saves: tuple[FailedSave, ...] = ()


class Resume(Record):
    """The checkpoint that the ranks of a view are asked to look at; `final`: the one that all of them go on from.

    `id` is None when there is none that can be used; `reasons` says by id why others cannot.
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
