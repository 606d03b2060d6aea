"""Shell completion: names of runs, hyperparameters, actions and checkpoints, read from etcd.

Completion must neither take long nor print anything, so every failure gives an empty list.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import typer

from instep.text import one_line

if TYPE_CHECKING:
    from instep.control import Keys
    from instep.etcd import Client

LIMIT_S = 3.0
"""The longest time that the shell waits for etcd."""
_SPLIT = re.compile(r"(\S+) =(?: (\S*))?$")
"""How bash passes `sched=co`: it splits `=` off as a word."""


def runs(ctx: typer.Context, incomplete: str) -> list[str]:
    async def names(client: Client, namespace: str) -> Iterable[str]:
        from instep.control import run_names

        return await run_names(client, namespace)

    return _asked(ctx, names, incomplete)


def names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of hyperparameters of the run that is typed already."""
    return _asked_of_run(ctx, lambda client, keys: _values(client, keys), incomplete)


def assignments(ctx: typer.Context, incomplete: str) -> list[str]:
    """`lr=`, and if only one name matches also its current value: `lr=3e-4`."""
    name, is_split = _assigned(incomplete)

    async def offered(client: Client, keys: Keys) -> Iterable[str]:
        found = await _values(client, keys)
        if name is not None:
            return [found.get(name, "") if is_split else f"{name}={found.get(name, '')}"]
        left = [one for one in found if one.startswith(incomplete)]
        return [f"{one}=" for one in left] + ([f"{left[0]}={found[left[0]]}"] if len(left) == 1 else [])

    return _asked_of_run(ctx, offered, _SPLIT.sub(r"\2", incomplete))


def actions(ctx: typer.Context, incomplete: str) -> list[str]:
    async def offered(client: Client, keys: Keys) -> Iterable[str]:
        from instep import control

        return [action.name for action in (await control.actions(client, keys)).actions]

    return _asked_of_run(ctx, offered, incomplete)


def checkpoints(ctx: typer.Context, incomplete: str) -> list[str]:
    async def offered(client: Client, keys: Keys) -> Iterable[str]:
        from instep import control

        return ["latest", *(item.id for item in (await control.checkpoints(client, keys)).checkpoints)]

    return _asked_of_run(ctx, offered, incomplete)


async def _values(client: Client, keys: Keys) -> dict[str, str]:
    from instep import control

    found = (await control.get(client, keys)).values
    return {value.name: control.format_value(value.agreed) if value.has_agreed else "" for value in found}


def _assigned(incomplete: str) -> tuple[str | None, bool]:
    """The name that is typed already before `=`, and whether bash has split it off."""
    if "=" in incomplete.strip("="):
        return incomplete.partition("=")[0], False
    found = _SPLIT.search(os.environ.get("COMP_WORDS", ""))
    return (found[1], True) if found else (None, False)


def _asked_of_run(
    ctx: typer.Context, work: Callable[[Client, Keys], Awaitable[Iterable[str]]], incomplete: str
) -> list[str]:
    from instep.control import Keys

    run = str(ctx.params.get("run") or "")
    return _asked(ctx, lambda client, namespace: work(client, Keys(namespace, run)), incomplete)


def _asked(ctx: typer.Context, work: Callable[[Client, str], Awaitable[Iterable[str]]], incomplete: str) -> list[str]:
    """What `work` reads and begins with the typed text; nothing if etcd does not answer in time."""
    logging.disable()
    try:
        import instep.control  # noqa: F401  # loaded before the time limit starts

        return _matching(asyncio.run(asyncio.wait_for(_connected(ctx, work), LIMIT_S)), incomplete)
    except Exception:  # noqa: BLE001  # no error may be printed into the line that a person types
        return []


async def _connected(ctx: typer.Context, work: Callable[[Client, str], Awaitable[Iterable[str]]]) -> Iterable[str]:
    from instep.control import connect
    from instep.settings import resolve

    given = {**(ctx.parent.params if ctx.parent is not None else {}), **{k: v for k, v in ctx.params.items() if v}}
    settings = resolve(given.get("etcd"), namespace=given.get("namespace"))
    async with connect(settings, timeout_s=LIMIT_S / 2) as client:
        return await work(client, settings.namespace)


def _matching(found: Iterable[str], incomplete: str) -> list[str]:
    """Those that a shell reads as one word."""
    return [
        name for name in found if name.startswith(incomplete) and one_line(name) == name and not re.search(r"\s", name)
    ]
