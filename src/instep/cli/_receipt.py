"""What every command shares that changes a run: write, wait for the receipt, and print the result."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import typer

from instep.cli._options import Asking, Target
from instep.cli._output import document, line, talk, talk_console
from instep.errors import ChangeRejected, CheckpointError, CommandRefused, InstepError, ReceiptTimeout

if TYPE_CHECKING:
    from instep.control import ChangeReceipt, CommandReceipt, Keys, Sent, Written
    from instep.etcd import Client

    Receipt: TypeAlias = ChangeReceipt | CommandReceipt

T = TypeVar("T")


def carry_out(
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


def print_result(
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
    from instep.control import Sent, format_changes

    if isinstance(asked, Sent):
        line(f"{asked.what}: requested at revision {asked.revision}")
        talk(f"it is done when all ranks have agreed on a step: instep status {asked.run} --watch")
        return
    what = format_changes(asked.changes)
    if asked.already_agreed:
        line(f"{what}: every rank has it already (written at revision {asked.revision})")
        return
    line(f"{what}: requested at revision {asked.revision}")
    if asked.live:
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
