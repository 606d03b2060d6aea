"""What all that changes a run shares: options, waiting for the receipt, and telling what became of it."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from instep.cli._output import document, line, talk, talk_console
from instep.errors import (
    ChangeRejected,
    CheckpointError,
    CommandRefused,
    InstepError,
    ReceiptTimeout,
    SettingsError,
)

if TYPE_CHECKING:
    from instep.control import ChangeReceipt, CommandReceipt, Keys, Sent, Written
    from instep.etcd import Client

    Receipt: TypeAlias = ChangeReceipt | CommandReceipt

MAX_TIMEOUT_S = 86400.0

WhyOption = Annotated[str | None, typer.Option("--why", metavar="TEXT", help="The reason, for the history.")]
AuthorOption = Annotated[str | None, typer.Option("--author", help="Who asks. Default: user@host.")]
WaitOption = Annotated[
    bool | None,
    typer.Option(
        "--wait/--no-wait",
        help="Wait until every rank has done it. Default: wait on a terminal, not in scripts.",
        show_default=False,
    ),
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", help="How long --wait waits, up to a day.")
]


def check_timeout(timeout_s: float) -> None:
    """Raises SettingsError for one that cannot be waited for."""
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise SettingsError(f"a time-out of {timeout_s:g} s is not usable: give more than 0 and up to 86400")


def is_awaited(wait: bool | None, as_json: bool) -> bool:
    """Whether the receipt is waited for: as the option says, else where a person looks at the output."""
    return wait if wait is not None else not as_json and sys.stdout.isatty()


async def receipt_of(
    client: Client, keys: Keys, asked: Written | Sent, timeout_s: float
) -> Receipt | InstepError | None:
    """What became of a change or a command in the end, be it that the run refused it or that the time is up. None, at
    once, where no worker is alive to apply the change: the next start takes it."""
    if _is_for_next_start(asked):
        return None
    try:
        return await _wait(client, keys, asked, timeout_s)
    except (ChangeRejected, CommandRefused, ReceiptTimeout) as error:
        return error


def tell(
    asked: Written | Sent,
    end: Receipt | InstepError | None,
    *,
    as_json: bool,
    wait: bool | None = None,
    **more: object,
) -> None:
    """Print it, with `more` facts in the document; then end the process as the exit codes say. `end` is None when
    nobody waited, or when `wait` was asked for and there was nobody to wait for."""
    in_vain = end is None and bool(wait) and _is_for_next_start(asked)
    if as_json:
        facts = _document(asked, end)
        document({**more, **facts, "outcome": "stopped" if in_vain else facts["outcome"]})
    elif end is None:
        _tell_asked(asked)
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
    """Progress as one line that changes on a terminal, else as lines; all of it on stderr."""
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


def _tell_asked(asked: Written | Sent) -> None:
    from instep.control import Sent

    if isinstance(asked, Sent):
        line(f"{asked.what}: requested at revision {asked.revision}")
        talk(f"it is done when all ranks have agreed on a step: instep status {asked.run} --watch")
    else:
        _tell_written(asked)


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
