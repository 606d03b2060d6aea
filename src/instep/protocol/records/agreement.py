"""Records of what the ranks agree on: changes, commands, plans, decisions and answers."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from instep.command_kinds import COMMAND_KINDS
from instep.protocol.records.base import Record
from instep.wire.documents import Agreed, Plan


def _check_command(name: str) -> str:
    if name not in COMMAND_KINDS:
        raise ValueError(f"{name!r} is not a command that this version of Instep knows")
    return name


CommandName: TypeAlias = Annotated[str, AfterValidator(_check_command)]
"""A name in `COMMAND_KINDS`."""


class Command(Record):
    """Something that all ranks do before the same step. `name` is the action, or the checkpoint to return to."""

    kind: CommandName
    name: str | None = None
    save: bool = True
    """For a stop: whether a checkpoint is saved first."""
    node: str | None = None
    """For a stop: the node that is being preempted."""
    author: str | None = None
    reason: str | None = None


class Declined(Record):
    """A command that was declined, and why."""

    command: Command | None = None
    """None if its document could not be read."""
    revision: int
    """The revision that wrote the command."""
    why: str


class Change(Record):
    """Author and reason of a put. Written in the same transaction: its revision names the change."""

    id: str
    names: tuple[str, ...]
    author: str | None = None
    reason: str | None = None


class Decision(Record):
    """Written once per plan, never changed."""

    commit: bool
    reason: str | None = None
    by: str | None = None
    step: int | None = None
    """For an abort because a rank was late: the step of that rank."""
    refused: dict[str, str] | None = None
    """For an abort because a worker refused the values: reason by name. They are not planned again."""


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
