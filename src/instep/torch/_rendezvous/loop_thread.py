"""An asyncio loop in its own thread, for blocking code: torchrun's agent, never a training process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

JOIN_S: Final = 2.0


class LoopThread:
    """Runs coroutines for a thread that blocks.

    Promise: `run` returns or raises what the coroutine does; if it is interrupted, as by the exception of a signal, it
    cancels the coroutine. Limit: after `stop`, nothing runs. The thread is a daemon: it does not delay an exit without
    `stop`.
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
        """Cancels what still runs, then ends the thread, in about two seconds at most."""
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
