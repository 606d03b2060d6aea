"""What the tests of the recipes share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from instep.etcd import Client, KeyValue
from instep.recipes import Session

T = TypeVar("T")


@contextlib.asynccontextmanager
async def station(
    endpoints: Sequence[str], *, ttl_s: int = 10, timeout_s: float = 5.0
) -> AsyncIterator[tuple[Client, Session]]:
    """A client and its own session, as in another process."""
    async with Client(endpoints, timeout_s=timeout_s) as client, Session(client, ttl_s=ttl_s) as session:
        yield client, session


async def keys(client: Client, prefix: str) -> list[KeyValue]:
    """The keys that a recipe has left under its prefix, except tombstones."""
    found = (await client.range(f"{prefix}/")).kvs
    return [item for item in found if "/.gone/" not in item.key]


async def newest(client: Client, prefix: str) -> int:
    """The create revision of the newest key; 0 if there is none."""
    return max((item.create_revision for item in await keys(client, prefix)), default=0)


def at_once(*works: Awaitable[T]) -> asyncio.Future[list[T]]:
    return asyncio.gather(*works)
