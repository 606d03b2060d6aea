"""The data queued in a proxy for one direction of one connection. Pure: time comes from the caller."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Literal

Direction = Literal["up", "down"]
"""Direction: up to the server, or down to the client."""

LIMIT_BYTES = 1024 * 1024


class End(Enum):
    """How the owner of one end of a connection closed it."""

    CLOSED = "closed"
    RESET = "reset"


Item = bytes | End


class Flow:
    """A queue of bytes, and the end after them, each with the time from which it may pass. Keeps the order."""

    def __init__(self) -> None:
        self._items: deque[tuple[float, Item]] = deque()
        self.size = 0

    @property
    def full(self) -> bool:
        """Whether the queue is full: its source is not read until some data has passed."""
        return self.size >= LIMIT_BYTES

    @property
    def next_due(self) -> float | None:
        """When the first item may pass; None if the queue is empty."""
        return self._items[0][0] if self._items else None

    def put(self, item: Item, due: float) -> None:
        """Queues an item until `due`, or until the item before it may pass if that is later."""
        if self._items:
            due = max(due, self._items[-1][0])
        self._items.append((due, item))
        self.size += len(item) if isinstance(item, bytes) else 0

    def take(self, now: float) -> Item | None:
        """Removes and returns the first item if it is due, else None."""
        if not self._items or self._items[0][0] > now:
            return None
        _, item = self._items.popleft()
        self.size -= len(item) if isinstance(item, bytes) else 0
        return item
