"""`instep set`: check, write, and if asked wait for the receipt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli import _completion
from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
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
    from instep.control import Keys, Written
    from instep.etcd import Client


def set_values(
    run: RunArgument,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=VALUE...",
            help="JSON scalars; words need no quotes in text fields.",
            autocompletion=_completion.assignments,
        ),
    ],
    why: WhyOption = None,
    author: AuthorOption = None,
    wait: WaitOption = None,
    timeout: TimeoutOption = 60.0,
    create: Annotated[bool, typer.Option("--create", help="Also for a run that is still to come.")] = False,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change hyperparameters: all of them at one step, on every rank.

    Values are checked against the run's schema first; if one is refused, nothing is written.
    """
    check_timeout(timeout)
    from instep.control import parse_assignments

    texts = parse_assignments(values)

    async def work(client: Client, keys: Keys) -> tuple[Written, Receipt | InstepError | None]:
        from instep import control

        written = await control.set_values(client, keys, texts, author=author, reason=why, create=create)
        return written, await receipt_of(client, keys, written, timeout) if is_awaited(wait, as_json) else None

    written, end = with_run(work, run, etcd, namespace)
    tell(written, end, as_json=as_json, wait=wait)
