"""What `set` and `rollback` share: their options, waiting for the receipt, and telling what became of a change."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instep.cli._output import document, line, talk, talk_console
from instep.errors import ChangeRejected, InstepError, ReceiptTimeout, SettingsError

if TYPE_CHECKING:
    from instep.control import ChangeReceipt, Keys, Written
    from instep.etcd import Client

MAX_TIMEOUT_S = 86400.0

WhyOption = Annotated[str | None, typer.Option("--why", metavar="TEXT", help="The reason, for the history.")]
AuthorOption = Annotated[str | None, typer.Option("--author", help="Who asks. Default: user@host.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until every rank has applied it.")]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="How long --wait waits, up to a day.")
]


def check_timeout(timeout_s: float) -> None:
    """Raises SettingsError for one that cannot be waited for."""
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise SettingsError(f"a time-out of {timeout_s:g} s is not usable: give more than 0 and up to 86400")


async def receipt_of(client: Client, keys: Keys, written: Written, timeout_s: float) -> ChangeReceipt | InstepError:
    """What became of a change in the end, be it that the run refused it or that the time is up."""
    try:
        return await _wait(client, keys, written, timeout_s)
    except (ChangeRejected, ReceiptTimeout) as error:
        return error


def tell(written: Written, end: ChangeReceipt | InstepError | None, *, as_json: bool, **more: object) -> None:
    """Print it, with `more` facts in the document; then end the process as the exit codes say. `end` is None when
    nobody waited."""
    if as_json:
        document({**more, **_document(written, end)})
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
