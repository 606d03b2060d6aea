"""What the tests of the recipes share."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from instep.coordination import Session
from instep.etcd import Client, KeyValue

T = TypeVar("T")

LIMIT_S = 90.0


def run(main: Coroutine[Any, Any, T], limit_s: float = LIMIT_S) -> T:
    """Runs one test's coroutine with a limit, and checks that it leaves no task behind."""

    async def limited() -> T:
        async with asyncio.timeout(limit_s):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    return asyncio.run(limited())


async def until(condition: Callable[[], bool | Awaitable[bool]], limit_s: float = 20.0) -> float:
    """Waits until the condition holds; returns how long it took in seconds."""
    began = time.monotonic()
    async with asyncio.timeout(limit_s):
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return time.monotonic() - began
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def station(
    endpoints: Sequence[str], *, ttl_s: int = 10, timeout_s: float = 5.0
) -> AsyncIterator[tuple[Client, Session]]:
    """A client and a session of its own, as another process would have."""
    async with Client(endpoints, timeout_s=timeout_s) as client, Session(client, ttl_s=ttl_s) as session:
        yield client, session


async def keys(client: Client, prefix: str) -> list[KeyValue]:
    """What a recipe has left under its prefix, tombstones aside."""
    found = (await client.range(f"{prefix}/")).kvs
    return [item for item in found if "/.gone/" not in item.key]


def at_once(*works: Awaitable[T]) -> asyncio.Future[list[T]]:
    return asyncio.gather(*works)
