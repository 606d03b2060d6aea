"""Documents that both a worker and etcd hold. Anyone with access to etcd can write there, so they check themselves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import field, replace
from functools import cached_property
from typing import Literal

from instep.scalar import Scalar
from instep.wire.codec import Document


class Elastic(Document):
    """What torchrun passed to a worker, for display; decisions use `run_id` only."""

    restarts: int
    """How often the workers of its node were restarted after a failure of their own."""
    max_restarts: int
    group_rank: int | None = None
    run_id: str = ""
    """The same for all workers that one torchrun job starts, in all rounds; empty if unknown."""

    def __post_init__(self) -> None:
        if min(self.restarts, self.max_restarts, self.group_rank or 0) < 0 or len(self.run_id) > 128:
            raise ValueError("torchrun counts from 0, and its id has 128 characters at most")


class Directive(Document):
    """What the ranks do besides training, by step: a rank that joins later does it at the same step."""

    paused_at: int | None = None
    """The ranks wait before this step until the run is resumed."""
    save_at: int | None = None
    """In this step `checkpoint_requested` holds."""
    ends_at: int | None = None
    """The first step that is not run."""
    reason: str | None = None
    """Why it is paused or ends, for display."""
    node: str | None = None
    """The run ends because this node is being preempted."""

    def from_step(self, gate: int, step: int) -> Directive:
        """The same for ranks that waited before `step`, beyond the plan's gate: a run that is paused from its start
        waits where its ranks resumed."""
        if step <= gate:
            return self
        moved = {name: at + step - gate for name in ("save_at", "ends_at") if (at := getattr(self, name)) is not None}
        return replace(self, **moved)

    def is_paused(self, step: int) -> bool:
        """Whether `step` waits until the run is resumed."""
        return self.paused_at is not None and step >= self.paused_at

    def is_over(self, step: int) -> bool:
        """Whether `step` is not run any more."""
        return self.ends_at is not None and step >= self.ends_at


class Snapshot(Document):
    """The values that a worker starts a view with: `previous` (if any) before step `gate`, `values` from it on."""

    values: dict[str, Scalar] = field(default_factory=dict)
    plan: int = 0
    gate: int | None = None
    previous: dict[str, Scalar] | None = None
    directive: Directive = Directive()
    origin: int = 0
    back: int = 0
    """As in Agreed."""
    checkpoint: str | None = None
    """The newest committed checkpoint when the view was formed; None if there was none."""
    vote: bool = False
    """Whether the ranks have yet to agree on it: none has resumed from a checkpoint since the last fresh start."""
    digest: str = ""
    """As in Agreed."""


class Origin(Document):
    """A checkpoint that a run resumed from: the view that saved it, and the newest plan at that time."""

    id: str
    step: int
    view: int
    plan: int = 0


class Manifest(Document, kw_only=True):
    """A committed checkpoint. A file in its directory lists its files with their checksums; `digest` is the sha256 of
    that file: an exchange of either is noticed."""

    id: str
    """`<step>-<token>`."""
    step: int
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
    config: Mapping[str, Scalar] = field(default_factory=dict)
    plan: int = 0
    """The newest plan that was agreed on at `step`."""
    rank: int
    host: str
    node: str = ""
    duration_s: float
    lineage: tuple[str, ...] = ()
    """Ids of the checkpoints that its training resumed from, the newest first: the pointer that it replaced and the
    lineage of that one, 20 at most. A fall-back follows it, and never uses a checkpoint that the run has left."""
    committed_at: str
    """Wall clock of the saver's host, for display only."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]{1,19}-[0-9]{1,19}", self.id, re.ASCII) or self.step < 0:
            raise ValueError(f"{self.id[:60]!r} of step {self.step} does not name a checkpoint")


class Pointer(Document):
    """The newest committed checkpoint, and how long saving it took."""

    id: str
    step: int
    token: int
    view: int = 0
    plan: int = 0
    """View and plan of its manifest: the training that it belongs to."""
    duration_s: float = 0.0


class Saving(Document):
    """A checkpoint that is being written. Limit: it stays if its saver dies; then the leader has another token."""

    id: str
    step: int
    token: int
    rank: int


class Plan(Document, kw_only=True):
    """A change or a command that is proposed for step `gate`. `values` are those that change.

    A command changes no value; `directive` holds from the gate on, if the command changes it.
    """

    number: int
    view: int
    gate: int
    kind: str = "config"
    """`config` for a change of values, else the name of the command; a worker refuses an unknown command."""
    name: str | None = None
    directive: Directive | None = None
    checkpoint: Manifest | None = None
    """The checkpoint that the run returns to."""
    values: dict[str, Scalar]
    previous: dict[str, Scalar]
    revision: int
    author: str | None = None
    reason: str | None = None
    change_id: str | None = None
    opened_at: str | None = None
    """Wall clock of the leader's host, for display only."""
    parent: str = ""
    """The digest of the agreed values when it was opened: only workers that hold these promise it."""
    epoch: int = 0
    """The run's epoch when it was opened."""
    restored: int | None = None
    """The epoch in which it was written back; None if it was never lost."""

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"plans are numbered from 1, not {self.number}")

    @cached_property
    def digest(self) -> str:
        """Names this plan and all that was agreed before it."""
        return _digest(replace(self, restored=None))


class Agreed(Document, kw_only=True):
    """The values that every rank has: `previous` before step `gate`, the last gate that changed a value, and `values`
    from it on.

    `plan` is the newest committed plan, of a command or a change.
    """

    plan: int
    view: int
    values: dict[str, Scalar]
    gate: int | None = None
    previous: dict[str, Scalar] | None = None
    revision: int = 0
    directive: Directive = Directive()
    origin: int = 0
    """The view of the last fresh start."""
    back: int = 0
    """The plan that last returned the run to a checkpoint since then; 0 for none. The run has left what was saved
    before that plan."""
    began: int = 0
    """The newest plan at the last fresh start: no plan up to it concerns the current workers."""
    digest: str = ""
    """The digest of the last committed plan, or of the fresh start if that is newer."""
    parent: str = ""
    """The digest before that."""
    restored: int | None = None
    """The epoch in which it was written back; None if it was never lost."""

    def as_start(self) -> Agreed:
        """With the digest of a start: what this run restarts with."""
        digest = _digest(replace(self, digest="", parent="", restored=None))
        return replace(self, digest=digest, parent=self.digest)


def _digest(document: Document) -> str:
    return hashlib.sha256(document.encode().encode()).hexdigest()[:16]
