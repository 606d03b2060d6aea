"""A virtual loop that can freeze one process, as SIGSTOP does: none of its code runs while time passes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any

from virtual_loop import VirtualLoop

OWNER: ContextVar[object] = ContextVar("OWNER", default=None)
"""The process whose code runs; tasks and callbacks inherit it."""


class FreezingLoop(VirtualLoop):
    def __init__(self) -> None:
        self._frozen: set[object] = set()
        self._parked: list[tuple[object, asyncio.Handle, Context, Any, tuple[Any, ...]]] = []
        super().__init__()

    def freeze(self, owner: object) -> None:
        self._frozen.add(owner)

    def thaw(self, owner: object) -> None:
        """Callbacks that became due in the meantime are due now, in the same order."""
        self._frozen.discard(owner)
        parked, self._parked = self._parked, [item for item in self._parked if item[0] is not owner]
        for whose, handle, context, callback, args in parked:
            if whose is owner:
                super().call_soon(self._run, [handle], callback, args, context=context)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        made: list[asyncio.Handle] = []
        made.append(super().call_soon(self._run, made, callback, args, context=context))
        return made[0]

    def call_at(  # type: ignore[override]  # typeshed ties the arguments to the callback
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        made: list[asyncio.TimerHandle] = []
        made.append(super().call_at(when, self._run, made, callback, args, context=context))
        return made[0]

    def _run(self, made: Sequence[asyncio.Handle], callback: Any, args: tuple[Any, ...]) -> None:
        owner = OWNER.get()
        if owner is not None and owner in self._frozen:
            self._parked.append((owner, made[0], copy_context(), callback, args))
        elif not made[0].cancelled():  # it may have been after it was parked
            callback(*args)
