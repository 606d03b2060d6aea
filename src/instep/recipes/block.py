"""An `async with` block that runs a task."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from instep.tasks import Background, first_of

log = logging.getLogger("instep")


class TaskBlock(ABC):
    """Promise: the task ends when the block is left, and when entering it fails or is cancelled."""

    _task: asyncio.Task[None] | None = None
    _entered = False

    async def _enter(self, work: Coroutine[Any, Any, None], ready: Coroutine[Any, Any, None], name: str) -> Self:
        """Returns when `ready` returns. Raises what `ready` raises, and what ends the work before that."""
        self._task = task = Background(name, self._failed).start(work, name=name)
        try:
            await first_of(ready, ended(task))
            self._entered = True
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _failed(self, error: BaseException) -> None:
        """Logs the error at once, because the caller may use the block much later. On entry the caller gets it."""
        if self._entered:
            log.error("%r failed", self, exc_info=error)

    @abstractmethod
    async def close(self) -> None: ...


async def ended(task: asyncio.Task[None]) -> None:
    """Waits until the task ends and raises what ended it. Cancelling the wait does not cancel the task."""
    await asyncio.wait([task])
    task.result()
