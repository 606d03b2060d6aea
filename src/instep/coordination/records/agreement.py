"""Records of what the ranks agree on: changes, commands, plans, decisions and answers."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from instep.coordination.records.base import Record, digest_of
from instep.coordination.records.checkpoint import Manifest
from instep.scalar import Scalar

PlanKind: TypeAlias = Literal["config", "pause", "resume", "stop", "checkpoint", "action", "restore"]


CommandKind: TypeAlias = Literal["pause", "resume", "stop", "checkpoint", "action", "restore"]


class Directive(Record):
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


class Command(Record):
    """Something that all ranks do before the same step. `name` is the action, or the checkpoint to return to."""

    kind: CommandKind
    name: str | None = None
    save: bool = True
    """For a stop: whether a checkpoint is saved first."""
    node: str | None = None
    """For a stop: the node that is being preempted."""
    author: str | None = None
    reason: str | None = None


class Declined(Record):
    """A command that was declined, and why."""

    command: Command
    revision: int
    """The revision that wrote the command."""
    why: str


class Change(Record):
    """Author and reason of a put. Written in the same transaction: its revision names the change."""

    id: str
    names: tuple[str, ...]
    author: str | None = None
    reason: str | None = None


class Plan(Record):
    """A change or a command that is proposed for step `gate`. `values` are those that change.

    A command changes no value; `course` is the directive from the gate on, if the command changes it.
    """

    number: int = Field(ge=1)
    view: int
    gate: int
    kind: PlanKind = "config"
    name: str | None = None
    course: Directive | None = None
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

    @property
    def digest(self) -> str:
        """Names this plan and everything that was agreed before it."""
        return digest_of(self.model_dump_json(exclude={"restored"}, exclude_none=True))


class Decision(Record):
    """Written once per plan, never changed."""

    commit: bool
    reason: str | None = None
    by: str | None = None
    step: int | None = None
    """For an abort because a rank was late: the step of that rank."""
    refused: dict[str, str] | None = None
    """For an abort because a worker refused the values: reason by name. They are not planned again."""


class Agreed(Record):
    """The values that every rank has: `previous` before step `gate`, the last gate that changed a value, and `values`
    from it on. `course` is the directive.

    `plan` is the newest committed plan, of a command or a change.
    """

    plan: int
    view: int
    values: dict[str, Scalar]
    gate: int | None = None
    previous: dict[str, Scalar] | None = None
    revision: int = 0
    course: Directive = Directive()
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
        """The same values with the digest of a fresh start."""
        text = self.model_dump_json(exclude={"digest", "parent", "restored"}, exclude_none=True)
        return self.model_copy(update={"digest": digest_of(text), "parent": self.digest})


class Held(Record):
    """What the workers of a node hold and etcd has lost: agreed values, and their plan."""

    agreed: Agreed
    plan: Plan | None = None


class Ack(Record):
    """All ranks of a node have promised not to run step `gate` before they know the decision. Never withdrawn."""

    node: str
    ranks: tuple[int, ...]
    digest: str = ""
    """The digest of the promised plan: after etcd's history has gone back, another plan may have its number."""


class Receipt(Record):
    """All running ranks of a node have applied the plan."""

    node: str
    steps: dict[int, int]
    """By rank: the first step with the new values."""
    drift: dict[int, tuple[str, ...]] = Field(default_factory=dict)
    """By rank: the values that its optimizer is known not to hold, because something else writes them."""


class Rejected(Record):
    """A desired value that is not applied, and why. Valid until the key is written again."""

    name: str
    value: str
    revision: int
    reason: str
    by: Literal["schema", "fixed", "worker", "script"] = "schema"
    """What refused it. `script`: the run was started with the script's value instead."""
    change_id: str | None = None
    author: str | None = None
    why: str | None = None
    """The author's reason for the change."""
