"""Calls of torch's that may never come back: the host of a store may freeze, and its kernel keeps the connections."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from torch.distributed import DistStoreError

T = TypeVar("T")


def bounded(call: Callable[[], T], limit_s: float, what: str) -> T:
    """What `call` gives or raises; DistStoreError when it has not come back in `limit_s` seconds. It is then left to a
    thread that nobody waits for, and the store it works on must not be used any more: that would wait for the thread.

    Signals are heard meanwhile, unlike in the call itself. A caller that polls uses one thread for all its calls.
    """
    try:
        thread = _idle.pop()
    except IndexError:
        thread = _CallThread()
    done = thread.start_call(call)
    try:
        return done.result(limit_s)
    except TimeoutError:
        if done.done():  # the call's own
            raise
        raise DistStoreError(f"{what} has not answered in {limit_s:g} s: its host may be frozen") from None
    finally:
        if done.done():
            _idle.append(thread)
        else:
            thread.end_after_call()


class _CallThread:
    """A daemon thread that makes one call after the other."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="instep-store", daemon=True).start()

    def start_call(self, call: Callable[[], T]) -> Future[T]:
        done: Future[T] = Future()
        self._calls.put((call, done))
        return done

    def end_after_call(self) -> None:
        self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            call, done = item
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001  # whatever it is, it is the caller's
                done.set_exception(error)
            else:
                done.set_result(result)
            del item, call, done  # an idle thread must not keep a store alive


_idle: list[_CallThread] = []
"""Threads without a call: as many as there were calls at a time."""
os.register_at_fork(after_in_child=_idle.clear)  # a child has no threads but its own
