"""The commands that change what all ranks do at one step: `instep set`, `rollback`, and every kind of command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instep.cli import _completion
from instep.cli._options import Asking, RunArgument, Target
from instep.cli._output import document, line, talk
from instep.cli._receipt import carry_out, print_result
from instep.command_kinds import Argument, CommandKind, Option
from instep.errors import SettingsError

if TYPE_CHECKING:
    from instep.control import Keys, RolledBack, Sent, Written
    from instep.etcd import Client

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
    from instep.control import parse_assignments

    texts = parse_assignments(values)

    async def write(client: Client, keys: Keys) -> Written:
        from instep import control

        return await control.set_values(client, keys, texts, author=asking.author, reason=asking.why, create=create)

    written, end = carry_out(run, asking, target, write, lambda written: written)
    print_result(written, end, as_json=target.as_json, wait=asking.wait)


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
    from instep.control import parse_moment

    moment = parse_moment(plan) if plan is not None else None
    if moment in ("start", "now"):
        raise SettingsError(f"{moment!r} names no plan: give a number, as 'instep history' shows it")

    async def write(client: Client, keys: Keys) -> RolledBack:
        from instep import control

        view = control.view_of(moment) if moment is not None else None
        number = int(moment) if moment is not None and view is None else None
        return await control.rollback(client, keys, number, view=view, author=asking.author, reason=asking.why)

    done, end = carry_out(run, asking, target, write, lambda done: done.written)
    if not target.as_json:
        talk(f"rollback of plan {done.plan}" if done.view is None else f"rollback of the start of view {done.view}")
    print_result(done.written, end, as_json=target.as_json, wait=asking.wait, plan=done.plan, view=done.view)


def command_of(kind: CommandKind) -> Callable[..., None]:
    """The command line's command for a kind of command, with the argument and options that it takes."""

    def command(
        run: str,
        *,
        asking: Asking,
        target: Target,
        name: str | None = None,
        save: bool = True,
        node: str | None = None,
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

        sent, end = carry_out(run, asking, target, write, lambda sent: sent)
        print_result(sent, end, as_json=target.as_json)

    takes = {"run": (RunArgument, inspect.Parameter.empty)}
    if kind.argument is not None:
        takes["name"] = ARGUMENTS[kind.argument]
    takes |= {name: OPTIONS[name] for name in kind.options}
    groups = {"asking": (Asking, inspect.Parameter.empty), "target": (Target, inspect.Parameter.empty)}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=hint, default=default)
        for name, (hint, default) in {**takes, **groups}.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = kind.help
    return command


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
