"""Timed calls: none may exceed its timeout, whatever happens to etcd."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fault_support import SLACK_S

T = TypeVar("T")


@dataclass
class CallTimes:
    """How long each call took against its limit, in seconds; `overdue` names those that outlasted theirs."""

    made: int = 0
    longest_s: float = 0.0
    overdue: list[str] = field(default_factory=list)

    async def timed(self, subject: str, limit_s: float, call: Callable[[float], Awaitable[T]]) -> T:
        began = time.monotonic()
        try:
            return await call(limit_s)
        finally:
            took_s = time.monotonic() - began
            self.made += 1
            self.longest_s = max(self.longest_s, took_s)
            if took_s > limit_s + SLACK_S:
                self.overdue.append(f"{subject} took {took_s:.2f} s of {limit_s:g} s")
