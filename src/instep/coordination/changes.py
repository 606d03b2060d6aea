"""A part of etcd as one value that changes: what `observe` and `watch` of the recipes give."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Generic, Self, TypeVar

from instep.coordination.block import TaskBlock, ended
from instep.coordination.mirror import Mirror
from instep.errors import SettingsError
from instep.etcd import Client, Event, KeyValue
from instep.tasks import cancelled, first_of

T = TypeVar("T")


class Changes(TaskBlock, Generic[T]):
    """Entered and then iterated, gives the value as it is, and again each time it is another one. It does not end.

    Promise: the newest value is always given in the end, over outages, compactions and restarts of etcd. Limit: a value
    that was replaced before it was asked for is skipped, so nothing piles up; each is of a moment that has passed.
    One consumer at a time.
    """

    def __init__(self, client: Client, prefix: str, look: Callable[[Mapping[str, KeyValue]], T]) -> None:
        self._look = look
        self._moved = asyncio.Event()
        self._mirror = Mirror(client, prefix, self._on_change)
        self._given: tuple[T] | None = None
        self._prefix = prefix

    def __repr__(self) -> str:
        return f"Changes({self._prefix}, {'following' if self._task else 'not entered'}, {self._mirror!r})"

    async def __aenter__(self) -> Self:
        """Raises what the client raises when etcd cannot be read at first."""
        return await self._enter(self._mirror.run(), self._mirror.wait_listed(), f"changes of {self._prefix}")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await cancelled(task)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """The next value. Cancelling this wait loses nothing."""
        task = self._task
        if task is None:
            raise SettingsError("Changes are iterated inside their async with block.")
        while True:
            self._moved.clear()
            value = self._look(self._mirror.keys)
            if self._given is None or self._given[0] != value:
                self._given = (value,)
                return value
            await first_of(self._moved_once(), ended(task))

    async def _moved_once(self) -> None:
        await self._moved.wait()

    def _on_change(self, events: tuple[Event, ...]) -> None:
        self._moved.set()
