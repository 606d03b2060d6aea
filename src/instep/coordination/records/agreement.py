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
    """What the ranks do beside training on, by step: so whoever joins later does it at the same step."""

    paused_at: int | None = None
    """They stand before this step until the run is resumed."""
    save_at: int | None = None
    """In this step `checkpoint_requested` holds."""
    ends_at: int | None = None
    """The first step that is not run."""
    reason: str | None = None
    """Why it is paused or ends, for people."""
    node: str | None = None
    """It ends for the sake of this node, which is about to go."""


class Command(Record):
    """Something that all ranks are to do at one step. `name` is the action's, or the checkpoint's to go back to."""

    kind: CommandKind
    name: str | None = None
    save: bool = True
    """Of a stop: whether a checkpoint is saved first."""
    node: str | None = None
    """Of a stop: the node that is about to go, and for whose sake the run stops."""
    author: str | None = None
    reason: str | None = None


class Declined(Record):
    """A command that was not carried out, and why."""

    command: Command
    revision: int
    """The revision that wrote the command."""
    why: str


class Change(Record):
    """Who asked for a put and why; written in the same txn, so its revision names the change."""

    id: str
    names: tuple[str, ...]
    author: str | None = None
    reason: str | None = None


class Plan(Record):
    """A change or a command proposed for step `gate`. `values` are those that change; the rest of the agreed ones stay.

    A command changes no value; `course` is what holds from the gate on where it changes that.
    """

    number: int = Field(ge=1)
    view: int
    gate: int
    kind: PlanKind = "config"
    name: str | None = None
    course: Directive | None = None
    checkpoint: Manifest | None = None
    """What the run goes back to."""
    values: dict[str, Scalar]
    previous: dict[str, Scalar]
    revision: int
    author: str | None = None
    reason: str | None = None
    change_id: str | None = None
    opened_at: str | None = None
    """Wall clock of the leader's host, for people only: no decision looks at it."""
    parent: str = ""
    """The digest of what was agreed when it was opened: only workers that hold that promise it."""
    epoch: int = 0
    """Of the run, when it was opened."""
    restored: int | None = None
    """Of one that was written back: the epoch in which that was done."""

    @property
    def digest(self) -> str:
        """Names this plan and all that was agreed before it."""
        return digest_of(self.model_dump_json(exclude={"restored"}, exclude_none=True))


class Decision(Record):
    """Written once per plan, never changed."""

    commit: bool
    reason: str | None = None
    by: str | None = None
    step: int | None = None
    """With an abort because a rank was late: the step that rank stood at."""
    refused: dict[str, str] | None = None
    """With an abort because a worker could not accept the values: reason by name. Not to be planned again."""


class Agreed(Record):
    """The values that every rank has, `previous` before step `gate`, the last that changed a value; and their course.

    `plan` is the newest that was committed, a command or a change.
    """

    plan: int
    view: int
    values: dict[str, Scalar]
    gate: int | None = None
    previous: dict[str, Scalar] | None = None
    revision: int = 0
    course: Directive = Directive()
    origin: int = 0
    """The view in which the run last began anew."""
    back: int = 0
    """The plan that last took the run back to a checkpoint, since then; 0 for none. What was saved before that plan
    belongs to a training that was left."""
    began: int = 0
    """The newest plan when the run last began anew: nothing up to it binds those who train now."""
    digest: str = ""
    """Of the plan committed last, or of the start of the run since then."""
    parent: str = ""
    """What `digest` was before that."""
    restored: int | None = None
    """The epoch in which the ranks wrote it back; None if it was never lost."""

    def as_start(self) -> Agreed:
        """With the digest of a start: what this run restarts with."""
        text = self.model_dump_json(exclude={"digest", "parent", "restored"}, exclude_none=True)
        return self.model_copy(update={"digest": digest_of(text), "parent": self.digest})


class Held(Record):
    """What a node's workers hold beyond etcd: what was agreed, and the plan that it came from."""

    agreed: Agreed
    plan: Plan | None = None


class Ack(Record):
    """All ranks of a node promised not to run step `gate` before they know the decision. Never withdrawn."""

    node: str
    ranks: tuple[int, ...]
    digest: str = ""
    """Of the plan that they promised: another one may have its number once etcd's history has gone back."""


class Receipt(Record):
    """All ranks of a node that still run applied the plan, each before it ran `step`."""

    node: str
    steps: dict[int, int]
    """Step by rank: the first step run with the new values."""
    drift: dict[int, tuple[str, ...]] = Field(default_factory=dict)
    """By rank, which of the values its optimizer does not hold, as far as is known: something else writes them."""


class Rejected(Record):
    """A desired value that is not applied, and why. It stands until the key is written again."""

    name: str
    value: str
    revision: int
    reason: str
    by: Literal["schema", "fixed", "worker", "script"] = "schema"
    """What refused it; `script`: the run was started with the script's value instead."""
    change_id: str | None = None
    author: str | None = None
    why: str | None = None
    """The reason that the author gave for the change."""
