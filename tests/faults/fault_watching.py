"""A watch that is read all the time, with everything that it delivered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from async_support import until
from instep.etcd import Client, Event, Watch, WatchBatch


class Follower:
    """Reads one watch in its own task; `error` is what ended it, if anything did."""

    def __init__(self, client: Client, prefix: str, *, start_revision: int = 0) -> None:
        self.watch: Watch = client.watch(prefix, start_revision=start_revision)
        self.start_revision = start_revision
        self.batches: list[WatchBatch] = []
        self.error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.watch.__aenter__()
        self.start_revision = self.start_revision or self.watch.created_revision + 1
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.watch.close()
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch.events]

    @property
    def revision(self) -> int:
        """The revision of the newest event; 0 before the first."""
        return self.batches[-1].revision if self.batches else 0

    async def reaches(self, revision: int, limit_s: float = 30.0) -> float:
        """Waits until the events up to this revision have arrived and returns the seconds; raises what ended the
        watch."""

        def there() -> bool:
            if self.error is not None:
                raise self.error
            return self.revision >= revision

        return await until(there, limit_s)

    async def _read(self) -> None:
        try:
            async for batch in self.watch:
                self.batches.append(batch)
        except Exception as error:  # noqa: BLE001  # it is looked at by who waits
            self.error = error


async def history_of(client: Client, prefix: str, first_revision: int, last_revision: int) -> Sequence[Event]:
    """The events according to etcd itself, read by an undisturbed watch."""
    async with Follower(client, prefix, start_revision=first_revision) as reader:
        await reader.reaches(last_revision)
        return [event for event in reader.events if event.kv.mod_revision <= last_revision]
