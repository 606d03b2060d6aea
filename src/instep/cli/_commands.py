"""What operators have all ranks do at one step: `instep pause`, `resume`, `checkpoint`, `stop`, `act`, `restore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli import _completion
from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, line, talk
from instep.cli._receipt import (
    AuthorOption,
    TimeoutOption,
    WaitOption,
    WhyOption,
    check_timeout,
    is_awaited,
    receipt_of,
    tell,
)
from instep.errors import InstepError

if TYPE_CHECKING:
    from instep.cli._receipt import Receipt
    from instep.control import Keys, Sent
    from instep.etcd import Client
    from instep.protocol.records import CommandKind


def pause(
    run: RunArgument,
    why: WhyOption = None,
    author: AuthorOption = None,
    wait: WaitOption = None,
    timeout: TimeoutOption = 60.0,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have all ranks wait before one step, until they are resumed. A restart of the run stays paused."""
    _send("pause", run, why, author, wait, timeout, etcd, namespace, as_json)


def resume(
    run: RunArgument,
    why: WhyOption = None,
    author: AuthorOption = None,
    wait: WaitOption = None,
    timeout: TimeoutOption = 60.0,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a paused run go on."""
    _send("resume", run, why, author, wait, timeout, etcd, namespace, as_json)


def checkpoint(
    run: RunArgument,
    why: WhyOption = None,
    author: AuthorOption = None,
    wait: WaitOption = None,
    timeout: TimeoutOption = 60.0,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a checkpoint saved now: all ranks save the same step.

    With --wait, until it is committed.
    """
    _send("checkpoint", run, why, author, wait, timeout, etcd, namespace, as_json)


def stop(
    run: RunArgument,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Whether a checkpoint is saved first.")] = True,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="NODE", help="A notice: this node (its name or host) is about to go."),
    ] = None,
    why: WhyOption = None,
    author: AuthorOption = None,
    wait: WaitOption = None,
    timeout: TimeoutOption = 60.0,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the run: all ranks save the same step, and leave before the next.

    With --wait, until the checkpoint is committed.
    """
    _send("stop", run, why, author, wait, timeout, etcd, namespace, as_json, save=save, node=node)


def act(
    run: RunArgument,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="The action. Without it, those declared are listed.",
            autocompletion=_completion.actions,
        ),
    ] = None,
    why: WhyOption = None,
    author: AuthorOption = None,
    wait: WaitOption = None,
    timeout: TimeoutOption = 60.0,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have every rank run an action of the training script (run.action) before the same step.

    With --wait, until it has run on every rank.
    """
    if name is None:
        _list_actions(run, etcd, namespace, as_json)
        return
    from instep.names import check_action_name

    check_action_name(name)
    _send("action", run, why, author, wait, timeout, etcd, namespace, as_json, name=name)


def restore(
    run: RunArgument,
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Its id in 'instep checkpoints', or 'latest'.",
            autocompletion=_completion.checkpoints,
        ),
    ],
    why: WhyOption = None,
    author: AuthorOption = None,
    wait: WaitOption = None,
    timeout: TimeoutOption = 60.0,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a run that trains back to a checkpoint, on every rank before the same step, without restarting it."""
    _send("restore", run, why, author, wait, timeout, etcd, namespace, as_json, name=checkpoint)


def _send(
    kind: CommandKind,
    run: str,
    why: str | None,
    author: str | None,
    wait: bool | None,
    timeout_s: float,
    etcd: str | None,
    namespace: str | None,
    as_json: bool,
    *,
    name: str | None = None,
    save: bool = True,
    node: str | None = None,
) -> None:
    check_timeout(timeout_s)

    async def work(client: Client, keys: Keys) -> tuple[Sent, Receipt | InstepError | None]:
        from instep import control

        sent = await control.send(client, keys, kind, name=name, save=save, node=node, author=author, reason=why)
        return sent, await receipt_of(client, keys, sent, timeout_s) if is_awaited(wait, as_json) else None

    sent, end = with_run(work, run, etcd, namespace)
    tell(sent, end, as_json=as_json)


def _list_actions(run: str, etcd: str | None, namespace: str | None, as_json: bool) -> None:
    from instep import control

    found = with_run(control.actions, run, etcd, namespace)
    if as_json:
        document(found.to_json())
        return
    for action in found.actions:
        line(action.name if action.everywhere else f"{action.name}  rank {action.ranks} only")
    if not found.actions:
        talk(f'the training script of {run} declares no action: @run.action("evaluate") does')
