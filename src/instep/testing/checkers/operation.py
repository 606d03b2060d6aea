"""One call of one client on one key: the request, the answer, and the times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from instep.errors import SettingsError
from instep.testing.checkers.jsonl import record

Value: TypeAlias = str | int | bytes

ARGUMENTS: dict[str, tuple[str, ...]] = {
    "get": (),
    "put": ("value",),
    "delete": (),
    "create": ("value",),
    "cas_revision": ("expected mod revision, 0 for absent", "value"),
    "cas_value": ("expected value", "value"),
}
"""The kinds of operation on a register, with their arguments."""

CONDITIONAL = ("create", "cas_revision", "cas_value")


@record
@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a call. None means unknown, except for `value` of a get, where it means that the key is absent.

    `applied`: whether the key was changed. `mod_revision`: of the key that a get found. `revision`: the store's
    revision when the call took effect, from etcd's header; for an applied write, its own revision.
    """

    applied: bool | None = None
    value: Value | None = None
    mod_revision: int | None = None
    revision: int | None = None

    @classmethod
    def found(cls, value: Value, mod_revision: int | None = None, *, revision: int | None = None) -> Reply:
        """A get found the key."""
        return cls(value=value, mod_revision=mod_revision, revision=revision)

    @classmethod
    def absent(cls, *, revision: int | None = None) -> Reply:
        """A get did not find the key."""
        return cls(revision=revision)

    @classmethod
    def wrote(cls, revision: int | None = None) -> Reply:
        """A put, delete, create or compare-and-put changed the key."""
        return cls(applied=True, revision=revision)

    @classmethod
    def refused(cls, revision: int | None = None) -> Reply:
        """The compare failed, or there was nothing to delete."""
        return cls(applied=False, revision=revision)


@record
@dataclass(frozen=True, slots=True)
class Operation:
    """One operation. `called_at` and `returned_at` are monotonic seconds of one machine.

    `returned_at` is None if the outcome is unknown: the operation may take effect at any time after its call, or never.
    Checkers use only the times, so a client may have several operations at once.
    """

    client: str
    kind: str
    key: str
    args: tuple[Value, ...]
    reply: Reply | None
    called_at: float
    returned_at: float | None

    def __post_init__(self) -> None:
        wanted = ARGUMENTS.get(self.kind)
        if wanted is not None and len(wanted) != len(self.args):
            raise SettingsError(f"{self.kind} of {self.key} takes ({', '.join(wanted)}), not {self.args!r}")
        if self.returned_at is not None and self.returned_at < self.called_at:
            raise SettingsError(f"{self.kind} of {self.key} returned before it was called: use one monotonic clock")
        if self.kind == "put" and self.reply is not None and self.reply.applied is False:
            raise SettingsError(f"a put of {self.key} is never refused: record one that failed without a reply")

    @property
    def known(self) -> bool:
        """Whether the outcome is known."""
        return self.returned_at is not None

    def __str__(self) -> str:
        until = f"{self.returned_at:.6f}" if self.returned_at is not None else "?"
        call = f"{self.kind}({', '.join([self.key, *map(repr, self.args)])})"
        return f"[{self.called_at:.6f} .. {until}] {self.client}: {call} -> {_told(self)}"


def _told(operation: Operation) -> str:
    reply = operation.reply
    if reply is None:
        return "unknown"
    at = f" at revision {reply.revision}" if reply.revision is not None else ""
    if operation.kind == "get":
        version = f" (mod revision {reply.mod_revision})" if reply.mod_revision is not None else ""
        return ("no such key" if reply.value is None else repr(reply.value) + version) + at
    return {True: "applied", False: "refused", None: "done"}[reply.applied] + at
