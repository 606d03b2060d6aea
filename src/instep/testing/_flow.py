"""What waits in a proxy in one direction of one connection. Pure: time comes from the caller."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Literal

Way = Literal["up", "down"]
"""Towards the server, or back."""

LIMIT_BYTES = 1024 * 1024


class End(Enum):
    """How one end of a connection was closed by its owner."""

    CLOSED = "closed"
    RESET = "reset"


Item = bytes | End


class Flow:
    """Bytes, and the end after them, each with the moment from which it may go on; the order is kept."""

    def __init__(self) -> None:
        self._items: deque[tuple[float, Item]] = deque()
        self.size = 0

    @property
    def full(self) -> bool:
        """Whether enough waits: its source is not read until some has gone on."""
        return self.size >= LIMIT_BYTES

    @property
    def next_due(self) -> float | None:
        """When the first of what waits may go on; None: nothing waits."""
        return self._items[0][0] if self._items else None

    def put(self, item: Item, due: float) -> None:
        """Let it wait until `due`, or until what came before it may go on if that is later."""
        if self._items:
            due = max(due, self._items[-1][0])
        self._items.append((due, item))
        self.size += len(item) if isinstance(item, bytes) else 0

    def take(self, now: float) -> Item | None:
        """The first of what waits, if it is due."""
        if not self._items or self._items[0][0] > now:
            return None
        _, item = self._items.popleft()
        self.size -= len(item) if isinstance(item, bytes) else 0
        return item
