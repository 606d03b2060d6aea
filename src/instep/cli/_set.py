"""`instep set`: check, write, and if asked wait for the receipt."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, line, talk, talk_console
from instep.errors import ChangeRejected, InstepError, ReceiptTimeout, SettingsError

if TYPE_CHECKING:
    from instep.control import ChangeReceipt, Keys, Written
    from instep.etcd import Client

MAX_TIMEOUT_S = 86400.0


def set_values(
    run: RunArgument,
    values: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help="JSON scalars; words need no quotes in text fields.")
    ],
    why: Annotated[str | None, typer.Option("--why", metavar="TEXT", help="The reason, for the history.")] = None,
    author: Annotated[str | None, typer.Option("--author", help="Who asks. Default: user@host.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every rank has applied it.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", help="How long --wait waits, up to a day.")
    ] = 60.0,
    create: Annotated[bool, typer.Option("--create", help="Also for a run that is still to come.")] = False,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change hyperparameters: all of them at one step, on every rank.

    Values are checked against the run's schema first; if one is refused, nothing is written.
    """
    if not 0 < timeout <= MAX_TIMEOUT_S:
        raise SettingsError(f"a time-out of {timeout:g} s is not usable: give more than 0 and up to 86400")
    from instep.control import parse_assignments

    texts = parse_assignments(values)

    async def work(client: Client, keys: Keys) -> tuple[Written, ChangeReceipt | InstepError | None]:
        from instep import control

        written = await control.set_values(client, keys, texts, author=author, reason=why, create=create)
        if not wait:
            return written, None
        try:
            return written, await _wait(client, keys, written, timeout)
        except (ChangeRejected, ReceiptTimeout) as error:
            return written, error

    written, end = with_run(work, run, etcd, namespace)
    if as_json:
        document(_document(written, end))
    elif end is None:
        _tell_written(written)
    elif not isinstance(end, InstepError):
        line(end.sentence)
    if isinstance(end, InstepError):
        raise end
    if end is not None and not end.holds:
        raise typer.Exit(ReceiptTimeout.exit_code)


async def _wait(client: Client, keys: Keys, written: Written, timeout_s: float) -> ChangeReceipt:
    """Progress as one line that changes on a terminal, else as lines; all of it on stderr."""
    from contextlib import nullcontext

    from rich.status import Status as Spinner
    from rich.text import Text

    from instep.control import ChangeReceipt, follow

    spinner = Spinner(Text("requested"), console=talk_console()) if sys.stderr.isatty() else None
    with spinner or nullcontext():
        async with aclosing(follow(client, keys, written, timeout_s)) as moves:
            async for move in moves:
                if isinstance(move, ChangeReceipt):
                    return move
                if spinner is not None:
                    spinner.update(Text(move.sentence))
                else:
                    talk(move.sentence)
    raise AssertionError("following ends with a receipt or an error")


def _tell_written(written: Written) -> None:
    from instep.control import format_changes

    what = format_changes(written.changes)
    if written.already_agreed:
        line(f"{what}: every rank has it already (written at revision {written.revision})")
        return
    line(f"{what}: requested at revision {written.revision}")
    if written.live:
        talk(f"it takes effect when all ranks have agreed: instep status {written.run} --watch")
    else:
        talk(f"no worker of {written.run} is alive: the next start of the run takes it")


def _document(written: Written, end: ChangeReceipt | InstepError | None) -> dict[str, Any]:
    found: dict[str, Any] = {"written": written.to_json(), "outcome": None, "receipt": None, "error": None}
    if isinstance(end, InstepError):
        found["outcome"] = "rejected" if isinstance(end, ChangeRejected) else "timeout"
        found["error"] = str(end)
    elif end is not None:
        found["outcome"], found["receipt"] = end.outcome, end.to_json()
    return found
