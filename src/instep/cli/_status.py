"""`instep status`, once or kept up to date."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli._options import RunArgument, Target
from instep.cli._output import document, facts_console, plain, show, talk
from instep.errors import EtcdUnavailable
from instep.outage import Outage
from instep.tasks import first_of

if TYPE_CHECKING:
    from instep.control import Keys, RunStatus
    from instep.etcd import Client


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
