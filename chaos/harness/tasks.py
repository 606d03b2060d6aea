"""Background tasks of a block: they end with it, and a task that fails ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")
POLL_S = 0.05


class Background:
    """Starts coroutines that run until the block ends. `during` raises what one of them has raised meanwhile."""

    def __init__(self, work: Sequence[Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(work) for work in self._work]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        if error is None:
            _raise_first(ends)

    async def during(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`; when a task in the background fails first, `work` is cancelled and that is raised."""
        own = asyncio.create_task(work)
        try:
            waiting: set[asyncio.Task[Any]] = {own, *self._tasks}
            while not own.done():
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                _raise_first([task.exception() for task in done if task is not own])
            return own.result()
        finally:
            own.cancel()
            await asyncio.gather(own, return_exceptions=True)


async def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether the condition came true in time."""

    async def look() -> bool:
        return condition()

    return await until_async(look, timeout_s)


async def until_async(condition: Callable[[], Awaitable[bool]], timeout_s: float) -> bool:
    """The same for an asynchronous condition."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (held := await condition()) and loop.time() < deadline:  # noqa: ASYNC110  # not ours to signal
        await asyncio.sleep(POLL_S)
    return held


def _raise_first(ends: Sequence[BaseException | None]) -> None:
    for end in ends:
        if end is not None and not isinstance(end, asyncio.CancelledError):
            raise end
