"""Commands that only read: `instep runs`, `status`, `get`, `history`, `diff` and `checkpoints`."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli import _completion
from instep.cli._options import RunArgument, Target
from instep.cli._output import document, facts_console, json_text, line, local_time, plain, show, talk
from instep.errors import EtcdUnavailable, SettingsError
from instep.outage import Outage
from instep.tasks import first_of

if TYPE_CHECKING:
    from instep.control import HistoryReport, Keys, RunStatus, ValueStatus
    from instep.etcd import Client
    from instep.schedule import Schedule


def runs(*, target: Target) -> None:
    """List the runs that etcd knows: live or not, ranks, leader, step."""
    from instep import control

    found = target.with_client(control.runs)
    if target.as_json:
        document(found.to_json())
    elif found.runs:
        from instep.cli._tables import runs_table

        show(runs_table(found))
        if found.left_out:
            more = "1 more run is" if found.left_out == 1 else f"{found.left_out} more runs are"
            talk(
                f"{more} in {found.namespace}, changed longer ago than these: 'instep status RUN' shows one by its "
                "name, and 'instep delete RUN' deletes one that has ended"
            )
    else:
        talk(
            f"no run is in {found.namespace}: one appears when a training script calls instep.join, or torchrun "
            "is started with --rdzv-backend=etcd3"
        )


def status(
    run: RunArgument,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep it up to date until q or Ctrl-C.")] = False,
    *,
    target: Target,
) -> None:
    """Show the leader, ranks, steps, values, the open plan, torchrun's nodes and the last receipts.

    --watch with --json prints one document per line, a new one after each change.
    """
    from instep import control

    if watch:
        target.with_run(run, lambda client, keys: _watch(client, keys, as_json=target.as_json))
        return
    now = target.with_run(run, control.status)
    if target.as_json:
        document(now.to_json())
        return
    from instep.cli._page import status_page

    show(status_page(now).whole())


def get(
    run: RunArgument,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One hyperparameter. Default: all.", autocompletion=_completion.names),
    ] = None,
    *,
    target: Target,
) -> None:
    """Show the agreed values, and the desired ones that differ.

    With NAME, stdout holds the agreed value alone, as JSON: for scripts.
    """
    from instep import control

    found = target.with_run(run, lambda client, keys: control.get(client, keys, name))
    if target.as_json:
        document(found.to_json())
    elif name is not None:
        _print_value(found.values[0])
    elif found.values:
        from instep.cli._tables import values_table

        show(values_table(found.values))
    else:
        talk(f"run {run} has no hyperparameters yet")


def _print_value(value: ValueStatus) -> None:
    from instep.control import format_value
    from instep.scalar import format_scalar

    if value.has_agreed:
        json_text(format_scalar(value.agreed))
    else:
        talk(f"{value.name} has no agreed value yet")
    if value.state != "agreed":
        talk(f"desired {format_value(value.desired)}, {value.state}: {value.why}")


def diff(
    run: RunArgument,
    before: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A plan's number in 'instep history', 'v3' for the start of view 3, 'start', or 'now'."
        ),
    ],
    after: Annotated[str, typer.Argument(metavar="B", help="The same.")],
    *,
    target: Target,
) -> None:
    """Show which values differ between two moments: as they were after plan A, and after plan B."""
    from instep import control

    for moment in (before, after):
        control.parse_moment(moment)
    found = target.with_run(run, lambda client, keys: control.diff(client, keys, before, after))
    if target.as_json:
        document(found.to_json())
    elif found.changes:
        from instep.cli._tables import diff_table

        show(diff_table(found))
    else:
        talk(f"no value of run {run} differs between {found.before} and {found.after}")


def checkpoints(run: RunArgument, *, target: Target) -> None:
    """List the committed checkpoints, the newest first. A restart resumes from the one marked latest."""
    from instep import control

    found = target.with_run(run, control.checkpoints)
    if target.as_json:
        document(found.to_json())
    elif found.checkpoints:
        from instep.cli._tables import checkpoints_table

        show(checkpoints_table(found))
    else:
        talk(f"run {run} has no committed checkpoint")


def history(
    run: RunArgument,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many changes and commands, 1 to 1000.")] = 20,
    export: Annotated[
        str | None,
        typer.Option("--export", metavar="FILE", help="Write the schedule that the run was trained with; '-': stdout."),
    ] = None,
    *,
    target: Target,
) -> None:
    """Show what was changed or commanded, by whom, why, and the result; the newest first.

    With --export, write which values held at which step instead: for instep.join(..., replay=FILE).
    """
    from instep import control

    if export is not None:
        _export(target.with_run(run, control.schedule), export, as_json=target.as_json)
        return
    found = target.with_run(run, lambda client, keys: control.history(client, keys, limit))
    if target.as_json:
        document(found.to_json())
    else:
        _print_history(found, limit)


def _print_history(found: HistoryReport, limit: int) -> None:
    from instep.cli._tables import history_table, leader_changes, leaders_table

    if found.entries:
        show(history_table(found.entries))
    else:
        talk(f"run {found.run} has had no changes yet")
    for failed in found.failed_saves[:limit]:
        where = f"rank {failed.rank} on {failed.host}"
        line(f"{local_time(failed.at)}  step {failed.step} was not saved, {where}: {failed.reason}")
    for epoch in found.epochs:
        line(f"{local_time(epoch.at)}  {epoch.sentence}")
    if changed_hands := leader_changes(found.leaders):
        show(leaders_table(changed_hands))


def _export(schedule: Schedule, file: str, *, as_json: bool) -> None:
    """Write a schedule to a file; `-` is stdout. With `as_json`, stdout names the file."""
    if file == "-":
        json_text(schedule.encode().rstrip("\n"))
        return
    _write(Path(file), schedule.encode())
    if as_json:
        document({"run": schedule.run, "file": file, "digest": schedule.digest, "changes": len(schedule.changes)})
        return
    line(file)
    changes = "1 change" if len(schedule.changes) == 1 else f"{len(schedule.changes)} changes"
    talk(f"{changes} after the start values: instep.join(..., replay={file!r}) trains with them again")


def _write(path: Path, text: str) -> None:
    """Write the whole file, or leave it as it was. Raises SettingsError if it cannot be written."""
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")  # a pipe, such as a shell's >(...)
            return
        if not path.parent.is_dir():
            raise SettingsError(f"the folder of {str(path)!r} does not exist: create it first")
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            unfinished.write_text(text, encoding="utf-8")
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"the schedule cannot be written to {str(path)!r}: {reason}") from None


# -- a status that is kept up to date --------------------------------------------------------------------------


@contextmanager
def key_pressed(keys: bytes) -> Iterator[asyncio.Event]:
    """An event that is set when one of `keys` is pressed; never if stdin is no terminal. Needs a running loop."""
    pressed = asyncio.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        typed = os.read(descriptor, 64)
        if not typed or any(key in keys for key in typed):
            loop.remove_reader(descriptor)
            pressed.set()

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


async def _watch(client: Client, keys: Keys, *, as_json: bool) -> None:
    if as_json:
        async with aclosing(_statuses(client, keys)) as statuses:
            async for now, trouble in statuses:
                if trouble is None:
                    document(now.to_json(), compact=True)
    elif sys.stdout.isatty():
        await _screen(client, keys)
    else:
        await _pages(client, keys)


async def _statuses(client: Client, keys: Keys) -> AsyncGenerator[tuple[RunStatus, str | None]]:
    """Statuses without end; while etcd does not answer, the last one and the error. Raises if there is none yet."""
    from instep import control
    from instep.recipes.retry import UNAVAILABLE, Retry

    last: RunStatus | None = None
    retry = Retry(UNAVAILABLE, Outage("the status cannot be read", level=logging.DEBUG))
    while True:
        try:
            async with aclosing(control.watch_status(client, keys)) as statuses:
                async for now in statuses:
                    last = now
                    yield now, None
        except EtcdUnavailable as error:
            if last is None:
                raise
            yield last, str(error)
            await retry.failed(error)


async def _screen(client: Client, keys: Keys) -> None:
    """The whole terminal, redrawn in place, until q is pressed."""
    from rich.live import Live

    from instep.cli._page import status_page

    async def draw(live: Live) -> None:
        async with aclosing(_statuses(client, keys)) as statuses:
            async for now, trouble in statuses:
                live.update(status_page(now, trouble=trouble, hint="q leaves", cut=True), refresh=True)

    console = facts_console()
    with key_pressed(b"qQ\x03") as leave, Live(console=console, screen=True, auto_refresh=False) as live:
        await first_of(draw(live), leave.wait())


async def _pages(client: Client, keys: Keys) -> None:
    """Not on a terminal: a page after each change, separated by an empty line."""
    from instep.cli._page import status_page

    console = facts_console()
    shown = ""
    async with aclosing(_statuses(client, keys)) as statuses:
        async for now, trouble in statuses:
            if trouble is not None:
                talk(f"instep: {trouble}")
                continue
            page = plain(console, status_page(now).whole())
            if page != shown:
                sys.stdout.write(f"{page}\n\n")
                sys.stdout.flush()
            shown = page
