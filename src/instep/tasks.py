"""The only module that starts asyncio tasks. Each task has an owner that handles its end (tests/test_tasks.py)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, overload

log = logging.getLogger("instep")

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")

OnFailure = Callable[[BaseException], None]


class Background:
    """Owns background tasks.

    Promise: passes the exception of a failed task to `on_failure`, by default logs it with its traceback. `close`, and
    the end of the `async with` block, cancel the running tasks and wait for them. Limit: it does not report failures of
    tasks started with `awaited=True`, because the caller awaits those.
    """

    def __init__(self, what: str, on_failure: OnFailure | None = None) -> None:
        self._what = what
        self._on_failure = on_failure or self._log
        self._tasks: set[asyncio.Task[Any]] = set()

    def __repr__(self) -> str:
        return f"Background({self._what!r}, {len(self)} tasks)"

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], *, name: str | None = None, awaited: bool = False) -> asyncio.Task[T]:
        """Runs `work` as a task."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, awaited=awaited))
        return task

    async def settle(self, timeout_s: float | None) -> None:
        """Waits at most `timeout_s` seconds until the current tasks have ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def close(self) -> None:
        """Cancels the running tasks and waits until they have ended."""
        await cancelled(*self._tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _ended(self, task: asyncio.Task[Any], *, awaited: bool) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not awaited:
            self._on_failure(error)

    def _log(self, error: BaseException) -> None:
        log.error("%s failed", self._what, exc_info=error)


async def first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Returns or raises as soon as one of them does. Cancels the others and waits until they have ended."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancelled(*tasks)


@overload
async def all_of(first: Coroutine[Any, Any, T1], second: Coroutine[Any, Any, T2], /) -> tuple[T1, T2]: ...
@overload
async def all_of(
    first: Coroutine[Any, Any, T1], second: Coroutine[Any, Any, T2], third: Coroutine[Any, Any, T3], /
) -> tuple[T1, T2, T3]: ...
@overload
async def all_of(
    first: Coroutine[Any, Any, T1],
    second: Coroutine[Any, Any, T2],
    third: Coroutine[Any, Any, T3],
    fourth: Coroutine[Any, Any, T4],
    /,
) -> tuple[T1, T2, T3, T4]: ...
@overload
async def all_of(*works: Coroutine[Any, Any, T]) -> tuple[T, ...]: ...
async def all_of(*works: Coroutine[Any, Any, Any]) -> tuple[Any, ...]:
    """Runs all concurrently and returns their results. Raises the first failure after it has cancelled the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return tuple(task.result() for task in tasks)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancels the tasks and waits until they have ended. Ignores their exceptions, which their owner handles.

    It does not suppress CancelledError, because that would also suppress a cancellation of the calling task.
    """
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
