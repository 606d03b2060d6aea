"""Several watches as one stream of events, each begun where a reading ended."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from instep.etcd import Client, Event
from instep.tasks import Background

_Item = Event | Exception


class Feed:
    """Events of all prefixes added, in order for each prefix; between prefixes there is no order.

    An async context manager, for one consumer. An error of any watch (Compacted above all) is raised by `next`:
    HistoryChanged also where a connection broke and nothing shows that etcd's history is still the same.
    """

    def __init__(self, client: Client, history_changes: int) -> None:
        """`history_changes`: as the client's history said before the reading."""
        self._client = client
        self._history_changes = history_changes
        self._queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._prefixes: set[str] = set()
        self._watches = Background("a watch")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._watches.close()

    def add(self, prefix: str, start_revision: int) -> None:
        """Watch `prefix` from a revision on; a second time is passed over."""
        if prefix not in self._prefixes:
            self._prefixes.add(prefix)
            self._watches.start(self._watch(prefix, start_revision))

    def watches(self, prefix: str) -> bool:
        return prefix in self._prefixes

    async def next(self) -> list[Event]:
        """All that has come, at least one event. Raises what ended a watch. Cancelling it loses nothing."""
        items = [await self._queue.get()]
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        events: list[Event] = []
        for item in items:
            if isinstance(item, Exception):
                raise item
            events.append(item)
        return events

    async def _watch(self, prefix: str, start_revision: int) -> None:
        try:
            async with self._client.watch(
                prefix, start_revision=start_revision, listed=(), history_changes=self._history_changes
            ) as watch:
                async for batch in watch:
                    for event in batch.events:
                        self._queue.put_nowait(event)
        except Exception as error:  # noqa: BLE001  # handed to the consumer, whatever it is
            self._queue.put_nowait(error)
