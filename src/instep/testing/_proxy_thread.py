"""An event loop in its own thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from instep.errors import EtcdError

T = TypeVar("T")

_CALL_TIMEOUT_S = 10.0
_SETTLE_TIMEOUT_S = 1.0
_TURNS = 3
"""Iterations of the loop until closed transports have closed their sockets, in nested callbacks."""


class ProxyThread:
    """Runs callbacks for other threads until it is closed. A daemon thread; it does not exist in a forked child."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Runs `function` in the loop's thread and returns its result. Raises EtcdError if closed, or busy for 10 s."""
        if self.loop.is_closed():
            raise EtcdError("this proxy has been closed: create a new one")

        async def called() -> T:
            return function(*args)

        future: Future[T] = asyncio.run_coroutine_threadsafe(called(), self.loop)
        try:
            return future.result(_CALL_TIMEOUT_S)
        except TimeoutError as error:
            future.cancel()
            raise EtcdError(f"the proxy's thread was busy for {_CALL_TIMEOUT_S:g} s") from error

    def close(self) -> None:
        """Ends the loop after its pending callbacks, then the thread."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CALL_TIMEOUT_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(_settle())
        finally:
            self.loop.close()


async def _settle() -> None:
    """Waits for pending tasks: asyncio leaks a socket whose accept is cancelled half-way."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if left:
        _, late = await asyncio.wait(left, timeout=_SETTLE_TIMEOUT_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    for _ in range(_TURNS):
        await asyncio.sleep(0)  # closed transports need some iterations
