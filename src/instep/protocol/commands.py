"""Commands: what all ranks do before the same step, or why a command is declined. Pure.

A command is level-triggered like a desired value: its key exists until it is agreed on or declined, so an abort loses
nothing. The transaction that commits a command deletes its key, so it is carried out once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from instep.command_kinds import COMMAND_KINDS, Conditions, Takes, why_refused
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


def oldest(pending_commands: Iterable[PendingCommand]) -> PendingCommand | None:
    return min(pending_commands, key=_age, default=None)


def oldest_urgent(pending_commands: Iterable[PendingCommand]) -> PendingCommand | None:
    """The oldest urgent command. It is carried out before everything else that waits."""
    return oldest(pending for pending in pending_commands if _is_urgent(pending))


def unacceptable(pending_commands: Iterable[PendingCommand]) -> tuple[tuple[str, Declined], ...]:
    """By id, what is declined in any state of the run: unreadable commands, and too many, except urgent ones."""
    by_age = sorted(pending_commands, key=_age)
    unreadable = [(pending, pending.problem) for pending in by_age if pending.command is None]
    waiting = [pending for pending in by_age if pending.command is not None and not _is_urgent(pending)]
    crowded = f"{MAX_WAITING} commands are already waiting: send it again after some of them have been executed"
    return tuple(
        (pending.id, declined(pending, why))
        for pending, why in (*unreadable, *((pending, crowded) for pending in waiting[MAX_WAITING:]))
    )


def _is_urgent(pending: PendingCommand) -> bool:
    return pending.command is not None and COMMAND_KINDS[pending.command.kind].urgent


def _age(pending: PendingCommand) -> tuple[int, str]:
    return pending.revision, pending.id


def why_not(
    pending: PendingCommand, directive: Directive, manifests: Mapping[str, Manifest], *, somebody_left: bool
) -> str | None:
    """Why the command cannot be carried out now, with the fix; None when it can."""
    if pending.command is None:
        return pending.problem
    by_step = sorted(manifests, key=lambda name: manifests[name].step)
    return why_refused(pending.command, Conditions(directive, by_step, somebody_left))


def directive_after(
    command: Command, gate: int, directive: Directive, *, continues_at: int | None = None
) -> Directive | None:
    """The directive from the gate on; None if the command does not change it. `continues_at` is the step that the ranks
    continue with after they have loaded a checkpoint."""
    return COMMAND_KINDS[command.kind].sets(command, Takes(gate, directive, continues_at))


def directive_of_fresh_view(directive: Directive, *, ended: bool) -> Directive:
    """The directive of a fresh view. A pause is kept, because an operator does not pause a run until its next crash;
    everything else applied to the former processes.

    If all ranks have `ended` cleanly, their loops ended before the step of the pause, and the pause ends with them.
    """
    return (
        Directive(paused_at=0, reason=directive.reason)
        if directive.paused_at is not None and not ended
        else Directive()
    )


def declined(pending: PendingCommand, why: str) -> Declined:
    return Declined(command=pending.command, revision=pending.revision, why=why[:1000])


def outdated(revisions: Mapping[str, int]) -> tuple[str, ...]:
    """Ids of the declined commands, given with their revisions, to delete: all but the newest."""
    by_age = sorted(revisions, key=lambda name: revisions[name], reverse=True)
    return tuple(by_age[DECLINED_KEPT:])
