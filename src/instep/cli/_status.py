"""`instep status`, once or kept up to date."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from instep.cli._options import EtcdOption, JsonOption, NamespaceOption, RunArgument, with_run
from instep.cli._output import document, facts_console, plain, show, talk
from instep.errors import EtcdUnavailable
from instep.tasks import first_of

if TYPE_CHECKING:
    from instep.control import Keys, Status
    from instep.etcd import Client

_RETRY_S = 1.0


def status(
    run: RunArgument,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep it up to date until q or Ctrl-C.")] = False,
    etcd: EtcdOption = None,
    namespace: NamespaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show who leads, ranks, steps, values, the open plan, torchrun's nodes and the last receipts.

    --watch with --json prints one document a line, a new one after each change.
    """
    from instep import control

    if watch:
        with_run(lambda client, keys: _watch(client, keys, as_json), run, etcd, namespace)
        return
    now = with_run(control.status, run, etcd, namespace)
    if as_json:
        document(now.to_json())
        return
    from instep.cli._panel import status_page

    show(status_page(now).whole())


async def _watch(client: Client, keys: Keys, as_json: bool) -> None:
    if as_json:
        async with aclosing(_statuses(client, keys)) as statuses:
            async for now, trouble in statuses:
                if trouble is None:
                    document(now.to_json(), compact=True)
    elif sys.stdout.isatty():
        await _screen(client, keys)
    else:
        await _pages(client, keys)


async def _statuses(client: Client, keys: Keys) -> AsyncGenerator[tuple[Status, str | None]]:
    """Statuses without end; while etcd does not answer, the last one and the trouble. The first must be had."""
    from instep import control

    last: Status | None = None
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
            await asyncio.sleep(_RETRY_S)


async def _screen(client: Client, keys: Keys) -> None:
    """The whole terminal, redrawn in place, until q is pressed."""
    from rich.live import Live

    from instep.cli._keyboard import key_pressed
    from instep.cli._panel import status_page

    async def draw(live: Live) -> None:
        async with aclosing(_statuses(client, keys)) as statuses:
            async for now, trouble in statuses:
                live.update(status_page(now, trouble=trouble, hint="q leaves", cut=True), refresh=True)

    console = facts_console()
    with key_pressed(b"qQ\x03") as leave, Live(console=console, screen=True, auto_refresh=False) as live:
        await first_of(draw(live), leave.wait())


async def _pages(client: Client, keys: Keys) -> None:
    """Not on a terminal: a page after each change of what it says, an empty line between."""
    from instep.cli._panel import status_page

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
