"""The commands that change what all ranks do at one step: `instep set`, `rollback`, and every kind of command.

Each writes, waits for the receipt if that was requested, and prints the result.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer

from instep.cli import _completion
from instep.cli._options import Asking, RunArgument, Target, command_line
from instep.cli._output import document, line, talk, talk_console
from instep.command_kinds import Argument, CommandKind, Option
from instep.errors import ChangeRejected, CheckpointError, CommandRefused, InstepError, ReceiptTimeout

if TYPE_CHECKING:
    from instep.control import ChangeReceipt, CommandReceipt, Keys, RolledBack, Sent, Written
    from instep.etcd import Client

    Receipt: TypeAlias = ChangeReceipt | CommandReceipt

T = TypeVar("T")

ARGUMENTS: dict[Argument, tuple[Any, Any]] = {
    "action": (
        Annotated[
            str | None,
            typer.Argument(
                metavar="[NAME]",
                help="The action to run. Without it, lists the declared actions.",
                autocompletion=_completion.actions,
            ),
        ],
        None,
    ),
    "checkpoint": (
        Annotated[
            str,
            typer.Argument(
                metavar="CHECKPOINT",
                help="Checkpoint id, as 'instep checkpoints' lists it, or 'latest'.",
                autocompletion=_completion.checkpoints,
            ),
        ],
        inspect.Parameter.empty,
    ),
}
"""The type and default of what a command names."""
OPTIONS: dict[Option, tuple[Any, Any]] = {
    "save": (
        Annotated[bool, typer.Option("--save/--no-save", help="Save a checkpoint first.")],
        True,
    ),
    "node": (
        Annotated[
            str | None,
            typer.Option("--node", metavar="NODE", help="Preemption notice: this node (name or host) will end soon."),
        ],
        None,
    ),
}


def set_values(
    run: RunArgument,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE...",
            help="JSON scalars; text needs no quotes.",
            autocompletion=_completion.assignments,
        ),
    ],
    *,
    asking: Asking,
    create: Annotated[bool, typer.Option("--create", help="Accept a run that does not exist yet.")] = False,
    target: Target,
) -> None:
    """Change hyperparameters: all of them at one step, on every rank.

    Values are checked against the run's schema first; if one is refused, nothing is written.
    """
    from instep import control

    texts = control.parse_assignments(values)

    async def write(client: Client, keys: Keys) -> Written:
        return await control.set_values(client, keys, texts, author=asking.author, reason=asking.why, create=create)

    written, end = _carry_out(run, asking, target, write, lambda written: written)
    _print_result(written, end, as_json=target.as_json, wait=asking.wait)


def rollback(
    run: RunArgument,
    plan: Annotated[
        str | None,
        typer.Argument(
            metavar="PLAN",
            help="Plan number, or 'v3' for the start of view 3, as in 'instep history'. Default: the newest plan.",
        ),
    ] = None,
    *,
    asking: Asking,
    target: Target,
) -> None:
    """Take back a change and all that came after it: the values from before PLAN, at one step, on every rank.

    It is a change itself: it shows in the history, and can be rolled back.
    """
    from instep import control

    async def write(client: Client, keys: Keys) -> RolledBack:
        return await control.rollback(client, keys, plan, author=asking.author, reason=asking.why)

    done, end = _carry_out(run, asking, target, write, lambda done: done.written)
    if not target.as_json:
        talk(f"rollback of plan {done.plan}" if done.view is None else f"rollback of the start of view {done.view}")
    _print_result(done.written, end, as_json=target.as_json, wait=asking.wait, plan=done.plan, view=done.view)


def command_of(kind: CommandKind) -> Callable[..., None]:
    """The command line's command for a kind of command, with the argument and options that it takes."""

    def command(
        run: RunArgument,
        *,
        name: str | None = None,
        save: bool = True,
        node: str | None = None,
        asking: Asking,
        target: Target,
    ) -> None:
        if kind.argument == "action":
            from instep.names import check_action_name

            if name is None:
                _list_actions(run, target)
                return
            check_action_name(name)

        async def write(client: Client, keys: Keys) -> Sent:
            from instep import control

            return await control.send(
                client, keys, kind.name, name=name, save=save, node=node, author=asking.author, reason=asking.why
            )

        sent, end = _carry_out(run, asking, target, write, lambda sent: sent)
        _print_result(sent, end, as_json=target.as_json)

    command.__doc__ = kind.help
    takes = {"name": ARGUMENTS[kind.argument]} if kind.argument is not None else {}
    return command_line(command, takes | {name: OPTIONS[name] for name in kind.options})


def _list_actions(run: str, target: Target) -> None:
    from instep import control

    found = target.with_run(run, control.actions)
    if target.as_json:
        document(found.to_json())
        return
    for action in found.actions:
        line(action.name if action.everywhere else f"{action.name}  rank {action.ranks} only")
    if not found.actions:
        talk(f'the training script of {run} declares no action: @run.action("evaluate") does')


# -- receipts ------------------------------------------------------------------------------------------------


def _carry_out(
    run: str,
    asking: Asking,
    target: Target,
    write: Callable[[Client, Keys], Awaitable[T]],
    asked_of: Callable[[T], Written | Sent],
) -> tuple[T, Receipt | InstepError | None]:
    """Write a change or a command, and wait for the result if that was requested. The result is an error if the run
    refused it or the time is up; None without waiting."""

    async def work(client: Client, keys: Keys) -> tuple[T, Receipt | InstepError | None]:
        written = await write(client, keys)
        asked = asked_of(written)
        # No worker is alive to apply the change: the next start takes it.
        if not asking.waits(as_json=target.as_json) or _is_for_next_start(asked):
            return written, None
        try:
            return written, await _wait(client, keys, asked, asking.timeout)
        except (ChangeRejected, CommandRefused, ReceiptTimeout) as error:
            return written, error

    return target.with_run(run, work)


def _print_result(
    asked: Written | Sent,
    end: Receipt | InstepError | None,
    *,
    as_json: bool,
    wait: bool | None = None,
    **more: object,
) -> None:
    """Print the result, with `more` keys in the JSON document, and end the process with the documented exit code. `end`
    is None if nothing was waited for; with `wait`, because no worker is alive."""
    in_vain = end is None and bool(wait) and _is_for_next_start(asked)
    if as_json:
        result = _document(asked, end)
        document({**more, **result, "outcome": "stopped" if in_vain else result["outcome"]})
    elif end is None:
        _print_asked(asked)
    elif not isinstance(end, InstepError):
        line(end.sentence)
    if isinstance(end, InstepError):
        raise end
    if in_vain:
        raise typer.Exit(ReceiptTimeout.exit_code)
    if end is not None and not end.holds:
        unsaved = end.outcome == "unsaved"
        raise typer.Exit(CheckpointError.exit_code if unsaved else ReceiptTimeout.exit_code)


async def _wait(client: Client, keys: Keys, asked: Written | Sent, timeout_s: float) -> Receipt:
    """Show progress on stderr: on a terminal as one line that changes, else as lines."""
    from contextlib import nullcontext

    from rich.status import Status as Spinner
    from rich.text import Text

    from instep.control import Progress, follow

    following: AsyncGenerator[Progress | Receipt] = follow(client, keys, asked, timeout_s)
    spinner = Spinner(Text("requested"), console=talk_console()) if sys.stderr.isatty() else None
    with spinner or nullcontext():
        async with aclosing(following) as moves:
            async for move in moves:
                if not isinstance(move, Progress):
                    return move
                if spinner is not None:
                    spinner.update(Text(move.sentence))
                else:
                    talk(move.sentence)
    raise AssertionError("following ends with a receipt or an error")


def _is_for_next_start(asked: Written | Sent) -> bool:
    from instep.control import Sent

    return not isinstance(asked, Sent) and not asked.live and not asked.already_agreed


def _print_asked(asked: Written | Sent) -> None:
    from instep.control import Sent

    if not isinstance(asked, Sent) and asked.already_agreed:
        line(f"{asked.what}: every rank has it already (written at revision {asked.revision})")
        return
    line(f"{asked.what}: requested at revision {asked.revision}")
    if isinstance(asked, Sent):
        talk(f"it is done when all ranks have agreed on a step: instep status {asked.run} --watch")
    elif asked.live:
        talk(f"it takes effect when all ranks have agreed: instep status {asked.run} --watch")
    else:
        talk(f"no worker of {asked.run} is alive: the next start of the run uses it")


def _document(asked: Written | Sent, end: Receipt | InstepError | None) -> dict[str, Any]:
    from instep.control import Sent

    name = "sent" if isinstance(asked, Sent) else "written"
    found: dict[str, Any] = {name: asked.to_json(), "outcome": None, "receipt": None, "error": None}
    if isinstance(end, InstepError):
        refused = {ChangeRejected: "rejected", CommandRefused: "declined"}
        found["outcome"] = refused.get(type(end), "timeout")
        found["error"] = str(end)
    elif end is not None:
        found["outcome"], found["receipt"] = end.outcome, end.to_json()
    return found
