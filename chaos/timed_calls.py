"""Times every call of the clients beside the run: each must end within its timeout plus one second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")

GRACE_S = 1.0
LOOK_S = 0.1
MAX_KEPT = 50


class TimedCalls:
    """Times calls. The delay of a late event loop does not count against a call: it is added to the grace.

    `overruns` has a sentence for each of the first fifty calls that took too long.
    """

    def __init__(self) -> None:
        self.count = 0
        self.failures = 0
        self.longest_over_s = 0.0
        self.longest_lag_s = 0.0
        self.overruns: list[str] = []
        self._lag_s = 0.0
        self._due: float | None = None

    def __repr__(self) -> str:
        return f"TimedCalls({self.count}, {self.failures} failed, {len(self.overruns)} too long)"

    async def watch_loop(self) -> None:
        """Measures the delay of the event loop, until cancelled."""
        while True:
            self._due = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            late_s = max(0.0, time.monotonic() - self._due)
            self._lag_s += late_s
            self.longest_lag_s = max(self.longest_lag_s, late_s)

    async def timed(self, what: str, timeout_s: float, call: Awaitable[Result]) -> Result:
        """The call's result or error."""
        began, lag_s = time.monotonic(), self._lag_s
        self.count += 1
        try:
            return await call
        except Exception:
            self.failures += 1
            raise
        finally:
            now = time.monotonic()
            late_s = max(0.0, now - self._due) if self._due is not None else 0.0  # not measured by the loop yet
            over_s = now - began - timeout_s - late_s - (self._lag_s - lag_s)
            self.longest_over_s = max(self.longest_over_s, over_s)
            if over_s > GRACE_S and len(self.overruns) < MAX_KEPT:
                self.overruns.append(f"{what} ended {over_s:.1f} s after its timeout of {timeout_s:g} s")
