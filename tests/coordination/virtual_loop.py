"""An asyncio loop whose time only a test advances: every run is the same, and nothing waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from types import FunctionType
from typing import Any
from unittest import mock

MAX_ROUNDS = 20_000
_REAL = time.monotonic
INSTANT_S = 1e-7
"""Time always advances a little, because a wait below the resolution of a float would never end."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`settle` runs everything that is due now; `advance` lets seconds pass, timer by timer."""

    _ready: Any
    _scheduled: Any

    def __init__(self) -> None:
        self.now_s = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now_s

    def call_later(  # type: ignore[override]  # typeshed ties the arguments to the callback
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        """Prevents an agent that ends its process from ending this one."""
        if callback is os._exit:
            callback, args = _nothing, ()
        return super().call_later(delay, callback, *args, context=context)

    def settle(self) -> None:
        for _ in range(MAX_ROUNDS):
            self.now_s += INSTANT_S
            self.call_soon(self.stop)
            self.run_forever()
            if not self._ready and not self._is_due():
                return
        raise AssertionError("the tasks never come to rest")

    def advance(self, seconds: float) -> None:
        end = self.now_s + seconds
        self.settle()
        while self._scheduled and self._scheduled[0]._when <= end:
            self.now_s = max(self.now_s, self._scheduled[0]._when)
            self.settle()
        self.now_s = max(self.now_s, end)

    def shut(self) -> None:
        """Ends every task, also those that suppress cancellation, and closes."""
        for _ in range(20):
            tasks = asyncio.all_tasks(self)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            self.advance(10.0)
        left = asyncio.all_tasks(self)
        self.close()
        assert not left, left

    def _is_due(self) -> bool:
        while self._scheduled and self._scheduled[0]._cancelled:
            self.call_soon(self.stop)
            self.run_forever()
        return bool(self._scheduled) and self._scheduled[0]._when <= self.now_s


def _nothing() -> None:
    pass


@contextlib.contextmanager
def virtual_time(loop: VirtualLoop) -> Iterator[None]:
    """Makes every clock of the agent's code the clock of the loop; silences its log."""
    import instep.agent.node  # loads every module that an agent uses
    import instep.rendezvous.node  # noqa: F401  # and those of a rendezvous

    log = logging.getLogger("instep")
    disabled = log.disabled
    with contextlib.ExitStack() as stack:
        for made in _with_clock():
            if made.__kwdefaults__:
                stack.enter_context(mock.patch.dict(made.__kwdefaults__, _on(made.__kwdefaults__, loop)))
            if made.__defaults__:
                defaults = tuple(_on(dict(enumerate(made.__defaults__)), loop).values())
                stack.enter_context(mock.patch.object(made, "__defaults__", defaults))
        stack.enter_context(mock.patch("time.monotonic", loop.time))
        log.disabled = True
        try:
            yield
        finally:
            log.disabled = disabled


def _on(defaults: Mapping[Any, Any], loop: VirtualLoop) -> dict[Any, Any]:
    """The defaults, with the clock of the loop instead of the real one."""
    return {name: loop.time if value is _REAL else value for name, value in defaults.items()}


@cache
def _with_clock() -> tuple[FunctionType, ...]:
    """The constructors of Instep with a clock as a default argument: a default is bound before anything is patched."""
    modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("instep.")]
    inits = {
        vars(kind)["__init__"]: None
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and isinstance(vars(kind).get("__init__"), FunctionType)
    }
    return tuple(made for made in inits if _REAL in (*(made.__defaults__ or ()), *(made.__kwdefaults__ or {}).values()))
