"""Calls of torch's that may never come back: the host of a store may freeze, and its kernel keeps the connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from torch.distributed import DistStoreError

T = TypeVar("T")


def bounded(call: Callable[[], T], limit_s: float, what: str) -> T:
    """What `call` gives or raises; DistStoreError when it has not come back in `limit_s` seconds. It is then left to a
    thread that nobody waits for, and the store it works on must not be used any more: that would wait for the thread.

    Signals are heard meanwhile, unlike in the call itself.
    """
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the caller's
            done.set_exception(error)

    threading.Thread(target=work, name="instep-store", daemon=True).start()
    try:
        return done.result(limit_s)
    except TimeoutError:
        raise DistStoreError(f"{what} has not answered in {limit_s:g} s: its host may be frozen") from None
