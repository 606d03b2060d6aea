"""What every folder's tests of asynchronous code share: limits, and waiting for a condition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

LIMIT_S = 120.0
SLACK_S = 2.0
"""What a busy machine may add to the time that something takes."""


def run(main: Coroutine[Any, Any, T], limit_s: float = LIMIT_S) -> T:
    """Run one test's coroutine with a limit, and check that it leaves no task behind."""

    async def limited() -> T:
        async with asyncio.timeout(limit_s):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    return asyncio.run(limited())


async def until(condition: Callable[[], bool | Awaitable[bool]], limit_s: float = 30.0) -> float:
    """Wait until the condition holds; returns how long it took in seconds."""
    began = time.monotonic()
    async with asyncio.timeout(limit_s):
        while True:
            holds = condition()
            if isinstance(holds, Awaitable):
                holds = await holds
            if holds:
                return time.monotonic() - began
            await asyncio.sleep(0.01)  # nothing announces what a condition looks at
