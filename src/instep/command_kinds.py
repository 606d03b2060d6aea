"""The commands that an operator can give to a run, each defined here once. Pure.

To add a command, add one `CommandKind` to `COMMAND_KINDS`. The records, the leader's decision, the workers,
`control.send` with its receipt, and the command line all read it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeAlias

from instep.text import one_line
from instep.wire.documents import Directive

Argument: TypeAlias = Literal["action", "checkpoint"]
"""What a command names. action: a function of the training script, which every rank runs. checkpoint: a committed
checkpoint, which every rank loads."""
Option: TypeAlias = Literal["save", "node"]

NEVER_STEP: Final = -1
"""The gate of a command that is not planned yet."""


class CommandFields(Protocol):
    """A command as it was given (a record's fields)."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def save(self) -> bool: ...
    @property
    def node(self) -> str | None: ...
    @property
    def author(self) -> str | None: ...
    @property
    def reason(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the preconditions of a command depend on. `checkpoints` are the ids of the committed ones, by step."""

    directive: Directive
    checkpoints: Collection[str] = ()
    some_left: bool = False
    """Whether a rank has ended its training."""


@dataclass(frozen=True, slots=True)
class Takes:
    """When a command takes effect: at `gate`, over what holds before it. `continues_at` is the step that the ranks
    continue with after they have loaded a checkpoint."""

    gate: int
    before: Directive
    continues_at: int | None = None


def _no_reason(given: CommandFields, now: Conditions) -> str | None:
    return None


def _nothing(given: CommandFields, takes: Takes) -> Directive | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandKind:
    """One command: what it takes, when it is refused, what it sets, and how it is described."""

    name: str
    """As records hold it."""
    verb: str
    """As people write it."""
    help: str
    """The help text of the command line."""
    done: str
    """What the receipt says. `{step}` is the gate, of a stop the first step that is not run; `{on}` how many ranks did
    it; `{name}` the argument; `{resumes}` the step that the ranks continue with."""
    argument: Argument | None = None
    options: tuple[Option, ...] = ()
    refuses: Callable[[CommandFields, Conditions], str | None] = _no_reason
    """Why it cannot be carried out now, with the fix; None if it can."""
    sets: Callable[[CommandFields, Takes], Directive | None] = _nothing
    """The directive from the gate on; None if it stays as it is."""
    hint: str = ""
    """What an operator does about a refusal, `{run}` being the run."""
    urgent: bool = False
    """Whether it is carried out before everything else that waits, and however much waits."""
    survives_restart: bool = False
    """Whether what it sets still holds after all ranks have restarted."""

    def saves(self, given: CommandFields) -> bool:
        """Whether it requests a checkpoint."""
        directive = self.sets(given, Takes(0, Directive()))
        return directive is not None and directive.save_at is not None


def why_refused(given: CommandFields, now: Conditions) -> str | None:
    """Why the command cannot be carried out now; None if it can."""
    if now.directive.ends_at is not None:
        return f"the run already stops before step {now.directive.ends_at}"
    return COMMAND_KINDS[given.kind].refuses(given, now)


def describe(kind: str, name: str | None, *, save: bool = True, node: str | None = None) -> str:
    """`stop`, `act evaluate`, `restore 1200-57`: a command as people write it."""
    verb = COMMAND_KINDS[kind].verb if kind in COMMAND_KINDS else one_line(kind)
    named = f" {one_line(name)}" if name else ""
    return verb + named + (f" for node {one_line(node)}" if node else "") + ("" if save else " without a save")


def _refuse_pause(given: CommandFields, now: Conditions) -> str | None:
    return None if now.directive.paused_at is None else "the run is already paused"


def _refuse_resume(given: CommandFields, now: Conditions) -> str | None:
    return "the run is not paused" if now.directive.paused_at is None else None


def _refuse_checkpoint(given: CommandFields, now: Conditions) -> str | None:
    if now.directive.paused_at is None:
        return None
    return "the run is paused, and a checkpoint is saved within a step: resume it first, or stop it with a save"


def _refuse_restore(given: CommandFields, now: Conditions) -> str | None:
    if given.name not in now.checkpoints:
        there = ", ".join(list(now.checkpoints)[-5:]) or "none"
        return f"there is no checkpoint {given.name!r}; there are {there} (instep checkpoints)"
    if now.some_left:
        return "a rank has already ended its training and cannot go back: restart the run"
    return None


def _refuse_action(given: CommandFields, now: Conditions) -> str | None:
    return None if given.name else "it does not name an action"


def _pause(given: CommandFields, takes: Takes) -> Directive:
    return Directive(paused_at=takes.gate, save_at=takes.before.save_at, reason=_signed("paused", given))


def _resume(given: CommandFields, takes: Takes) -> Directive:
    return Directive(save_at=takes.before.save_at)


def _stop(given: CommandFields, takes: Takes) -> Directive:
    save_at, ends_at = (takes.gate, takes.gate + 1) if given.save else (None, takes.gate)
    return Directive(save_at=save_at, ends_at=ends_at, reason=_signed("stopped", given), node=given.node)


def _checkpoint(given: CommandFields, takes: Takes) -> Directive:
    return Directive(save_at=takes.gate)


def _restore(given: CommandFields, takes: Takes) -> Directive:
    """A paused run is paused again at the step that it continues with. A requested save is not repeated when its step
    is run again."""
    if takes.before.paused_at is None or takes.continues_at is None:
        return Directive()
    return Directive(paused_at=takes.continues_at, reason=takes.before.reason)


def _signed(did: str, given: CommandFields) -> str:
    text = f"{did} by {given.author}" if given.author else did
    return f"{text}: {given.reason}" if given.reason else text


COMMAND_KINDS: Final[dict[str, CommandKind]] = {
    kind.name: kind
    for kind in (
        CommandKind(
            name="pause",
            verb="pause",
            help="Have all ranks wait before one step, until they are resumed. A restart of the run stays paused.",
            done="paused before step {step} on {on}",
            refuses=_refuse_pause,
            sets=_pause,
            hint="'instep resume {run}' resumes it",
            survives_restart=True,
        ),
        CommandKind(
            name="resume",
            verb="resume",
            help="Resume a paused run.",
            done="resumed at step {step} on {on}",
            refuses=_refuse_resume,
            sets=_resume,
            hint="'instep status {run}' shows its state",
        ),
        CommandKind(
            name="stop",
            verb="stop",
            help="End the run: all ranks save the same step, and leave before the next.\n\n"
            "With --wait, wait until the checkpoint is committed.",
            done="all ranks stop before step {step}",
            options=("save", "node"),
            sets=_stop,
            hint="'instep status {run}' shows its progress",
            urgent=True,
        ),
        CommandKind(
            name="checkpoint",
            verb="checkpoint",
            help="Save a checkpoint now: all ranks save the same step.\n\nWith --wait, wait until it is committed.",
            done="asked for in step {step} on {on}",
            refuses=_refuse_checkpoint,
            sets=_checkpoint,
        ),
        CommandKind(
            name="restore",
            verb="restore",
            help="Take a running training back to a checkpoint, on every rank before the same step, without a restart.",
            done="all ranks went back before step {step} and continue with step {resumes} on {on}",
            argument="checkpoint",
            refuses=_refuse_restore,
            sets=_restore,
        ),
        CommandKind(
            name="action",
            verb="act",
            help="Have every rank run an action of the training script (run.action) before the same step.\n\n"
            "With --wait, wait until it has run on every rank.",
            done="{name} ran before step {step} on {on}",
            argument="action",
            refuses=_refuse_action,
        ),
    )
}
"""By name, in the order in which help texts list them."""
