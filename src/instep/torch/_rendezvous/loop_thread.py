"""An asyncio loop in a thread of its own, for code that blocks: the agent of torchrun, never a training process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

JOIN_S: Final = 2.0


class LoopThread:
    """Promise: `run` gives what the coroutine returns or raises; interrupted, by a signal's exception for example, it
    cancels the coroutine. Limit: after `stop` nothing runs any more; the thread is a daemon, so that a process that
    dies without `stop` is not held up.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"LoopThread({self._thread.name}, {'running' if self._thread.is_alive() else 'ended'})"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends what still runs, then the thread, in about two seconds at most."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop)
            self._thread.join(JOIN_S)
            if not self._thread.is_alive():
                self._loop.close()

    async def _end(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.wait(rest, timeout=JOIN_S / 2) if rest else None
        self._loop.stop()
