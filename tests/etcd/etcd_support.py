"""What the tests of instep.etcd share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from instep.etcd import Event, Watch
from instep.testing import EtcdServer

T = TypeVar("T")

LIMIT_S = 60.0


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run one test's coroutine with a limit, and check that it leaves no task behind."""

    async def limited() -> T:
        async with asyncio.timeout(LIMIT_S):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    return asyncio.run(limited())


async def until(condition: Callable[[], bool | Awaitable[bool]], limit_s: float = 20.0) -> float:
    """Wait until the condition holds; returns how long it took in seconds."""
    began = time.monotonic()
    async with asyncio.timeout(limit_s):
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return time.monotonic() - began
            await asyncio.sleep(0.01)


def freeze(server: EtcdServer) -> None:
    """Pause the server and wait until none of its threads runs any more."""
    server.pause()
    deadline = time.monotonic() + 5
    while not all(_is_stopped(task) for task in Path(f"/proc/{server.pid}/task").iterdir()):
        assert time.monotonic() < deadline, "the server did not stop"
        time.sleep(0.001)


def _is_stopped(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rsplit(")", 1)[1].split()[0] in "TtZX"
    except FileNotFoundError:
        return True


async def events(watch: Watch, count: int) -> list[Event]:
    """The next `count` events or somewhat more: whole batches."""
    found: list[Event] = []
    async for batch in _batches(watch):
        found.extend(batch)
        if len(found) >= count:
            break
    return found


async def _batches(watch: Watch) -> AsyncIterator[tuple[Event, ...]]:
    async for batch in watch:
        assert batch.events
        assert batch.revision == batch.events[-1].kv.mod_revision
        yield batch.events
