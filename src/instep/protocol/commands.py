"""Commands: what all ranks do before the same step, or why a command is declined. Pure.

A command is level-triggered like a desired value: its key exists until it is agreed on or declined, so an abort loses
nothing. The transaction that commits a command deletes its key, so it is carried out once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from instep.protocol.records import Command, Declined, Directive, Manifest

DECLINED_KEPT = 20
MAX_WAITING = 20
"""How many commands may wait; later ones are declined at once."""
MAX_DOCUMENT_BYTES = 8 * 1024
"""A command is copied into its plan and into the agreed values; etcd refuses a transaction over 1.5 MiB."""
UNREADABLE = "its key holds no command that this version of Instep knows: use the instep command line"


@dataclass(frozen=True, slots=True)
class PendingCommand:
    """The document in `commands/<id>`, and the revision that wrote it."""

    id: str
    revision: int
    command: Command | None
    """None if the document cannot be read."""
    problem: str = UNREADABLE
    """Why it cannot be read."""

    @classmethod
    def read(cls, id: str, revision: int, document: bytes) -> PendingCommand:
        if len(document) > MAX_DOCUMENT_BYTES:
            problem = f"its document has {len(document)} bytes, and no more than {MAX_DOCUMENT_BYTES} are read"
            return cls(id, revision, None, problem)
        return cls(id, revision, Command.decode_or_none(document))

    @property
    def readable(self) -> Command:
        """The command, or a placeholder for a document that cannot be read."""
        return self.command or Command(kind="checkpoint", reason="not readable")


def oldest(pending_commands: Iterable[PendingCommand]) -> PendingCommand | None:
    return min(pending_commands, key=_age, default=None)


def oldest_stop(pending_commands: Iterable[PendingCommand]) -> PendingCommand | None:
    """The oldest stop. A stop is carried out before everything else that waits."""
    return oldest(
        pending for pending in pending_commands if pending.command is not None and pending.command.kind == "stop"
    )


def hopeless(pending_commands: Iterable[PendingCommand]) -> tuple[tuple[str, Declined], ...]:
    """Commands to decline in any state of the run, by id: unreadable ones, and those beyond the limit; never a stop."""
    by_age = sorted(pending_commands, key=_age)
    unreadable = [(pending, pending.problem) for pending in by_age if pending.command is None]
    waiting = [pending for pending in by_age if pending.command is not None and pending.command.kind != "stop"]
    crowded = f"{MAX_WAITING} commands wait already: repeat it when some of them have been carried out"
    return tuple(
        (pending.id, declined(pending, why))
        for pending, why in (*unreadable, *((pending, crowded) for pending in waiting[MAX_WAITING:]))
    )


def _age(pending: PendingCommand) -> tuple[int, str]:
    return pending.revision, pending.id


def why_not(
    pending: PendingCommand, course: Directive, manifests: Mapping[str, Manifest], *, somebody_left: bool
) -> str | None:
    """Why the command cannot be carried out now, with the cure; None when it can."""
    command = pending.command
    if command is None:
        return pending.problem
    if course.ends_at is not None:
        return f"the run stops before step {course.ends_at} already"
    match command.kind:
        case "pause" if course.paused_at is not None:
            return "the run is paused already"
        case "resume" if course.paused_at is None:
            return "the run is not paused"
        case "checkpoint" if course.paused_at is not None:
            return "the run is paused, and a checkpoint is saved within a step: resume it first, or stop it with a save"
        case "action" if not command.name:
            return "it names no action"
        case "restore":
            return _why_no_restore(command, manifests, somebody_left=somebody_left)
        case _:
            return None


def directive_after(command: Command, gate: int, course: Directive, *, goes_on: int | None = None) -> Directive | None:
    """The directive from the gate on; None if the command does not change it. `goes_on` is the first step after a
    restore; a paused run is paused there."""
    reason = _signed(command)
    match command.kind:
        case "pause":
            return Directive(paused_at=gate, save_at=course.save_at, reason=reason)
        case "resume":
            return Directive(save_at=course.save_at)
        case "stop" if command.save:
            return Directive(save_at=gate, ends_at=gate + 1, reason=reason, node=command.node)
        case "stop":
            return Directive(ends_at=gate, reason=reason, node=command.node)
        case "checkpoint":
            return Directive(save_at=gate)
        case "restore" if course.paused_at is not None and goes_on is not None:
            return Directive(paused_at=goes_on, reason=course.reason)
        case "restore":
            return Directive()  # a save on request is not repeated when its step runs again
        case _:
            return None


def directive_of_fresh_view(course: Directive, *, ended: bool) -> Directive:
    """The directive of a fresh view. A pause is kept, because an operator does not pause a run until its next crash;
    everything else applied to the former processes.

    If all ranks have `ended` cleanly, their loops ended before the step of the pause, and the pause ends with them.
    """
    return Directive(paused_at=0, reason=course.reason) if course.paused_at is not None and not ended else Directive()


def declined(pending: PendingCommand, why: str) -> Declined:
    return Declined(command=pending.readable, revision=pending.revision, why=why[:1000])


def outdated(revisions: Mapping[str, int]) -> tuple[str, ...]:
    """Ids of the declined commands, given with their revisions, to delete: all but the newest."""
    by_age = sorted(revisions, key=lambda name: revisions[name], reverse=True)
    return tuple(by_age[DECLINED_KEPT:])


def _why_no_restore(command: Command, manifests: Mapping[str, Manifest], *, somebody_left: bool) -> str | None:
    if command.name not in manifests:
        there = ", ".join(sorted(manifests, key=lambda name: manifests[name].step)[-5:]) or "none"
        return f"there is no checkpoint {command.name!r}; there are {there} (instep checkpoints)"
    if somebody_left:
        return "a rank has ended its training already, and cannot go back: restart the run"
    return None


def _signed(command: Command) -> str:
    did = {"pause": "paused", "stop": "stopped"}.get(command.kind, command.kind)
    text = f"{did} by {command.author}" if command.author else did
    return f"{text}: {command.reason}" if command.reason else text
