"""A prefix of etcd, kept up to date in memory: listed once, then watched; listed again when history is compacted.

Every recipe that reads more than one key uses an informer: list and watch are combined correctly in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from instep.errors import Compacted, InstepError
from instep.etcd import Client, Event, KeyValue
from instep.recipes.retry import FOLLOW, Retry

Changed = Callable[[tuple[Event, ...]], None]


class Informer:
    """Promise: `keys` passes through the same states as etcd, revision by revision, but may skip some after a
    compaction. Limit: it lags behind etcd, so the transaction of a decision must compare what the decision was made
    from.

    `on_change(events)` is called after the first listing, even an empty one, and after each batch, in order. After
    another listing its events are the differences. If etcd holds another history than before (restored, emptied),
    everything is dropped, `on_reset()` is called, and the next listing counts as the first.
    """

    def __init__(
        self,
        client: Client,
        prefix: str,
        on_change: Changed = lambda events: None,
        *,
        decode: Callable[[bytes], Any] | None = None,
        on_reset: Callable[[], None] = lambda: None,
        contradicts: Callable[[Mapping[str, KeyValue]], str | None] = lambda found: None,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._on_change = on_change
        self._decode = decode
        self._on_reset = on_reset
        self._contradicts = contradicts
        self._history_changes = client.history.changes
        self._keys: dict[str, KeyValue] = {}
        self.records: dict[str, Any] = {}
        """Each value as `decode` returned it, once, when it arrived; without those that it returned None for."""
        self._listed = asyncio.Event()
        self._moved = asyncio.Event()
        self._revision = 0
        self.relistings = 0
        self._retry = Retry(FOLLOW, f"{prefix} cannot be followed")

    def __repr__(self) -> str:
        return f"Informer({self._prefix}, {len(self._keys)} keys at revision {self._revision})"

    @property
    def keys(self) -> Mapping[str, KeyValue]:
        return MappingProxyType(self._keys)

    @property
    def is_current(self) -> bool:
        """Whether its keys belong to the history that etcd is known to hold now."""
        return self._history_changes == self._client.history.changes

    @property
    def revision(self) -> int:
        """Every change up to this revision is included; later ones may be missing."""
        return self._revision

    def under(self, prefix: str) -> list[KeyValue]:
        return [item for key, item in self._keys.items() if key.startswith(prefix)]

    def get(self, key: str) -> KeyValue | None:
        return self._keys.get(key)

    async def wait_listed(self) -> None:
        """Returns after the first listing."""
        await self._listed.wait()

    async def wait_revision(self, revision: int, timeout_s: float) -> None:
        """Returns when a change at `revision` or later is included, or after `timeout_s`, as after a write without
        effect."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._revision < revision:
                    self._moved.clear()
                    await self._moved.wait()

    def forget(self, key: str) -> None:
        """Drops a key that is not needed any more, although etcd still holds it."""
        self._keys.pop(key, None)

    async def run(self) -> None:
        """Follows the prefix until cancelled, through outages. Raises an error before the first listing only."""
        while True:
            try:
                listed = await self._list()
                async with self._client.watch(
                    self._prefix,
                    start_revision=self._revision + 1,
                    listed=listed,
                    history_changes=self._history_changes,
                ) as watch:
                    async for batch in watch:
                        self._take(batch.events, batch.revision)
            except Compacted:
                self.relistings += 1
            except InstepError as error:
                if not self._listed.is_set():
                    raise
                await self._retry.failed(error)

    async def _list(self) -> tuple[KeyValue, ...]:
        history = self._client.history
        before = history.changes
        listing = await self._client.range(self._prefix)
        found = {item.key: item for item in listing.kvs}
        if before == history.changes == self._history_changes and (reason := self._disproof(found)) is not None:
            history.changed(reason)
            before = history.changes
        if self._history_changes != before:
            self._history_changes = before
            self._reset()
        events = [Event("put", item) for key, item in found.items() if not _same(self._keys.get(key), item)]
        events += [Event("delete", item) for key, item in self._keys.items() if key not in found]
        events.sort(key=lambda event: event.kv.mod_revision)
        self._take(tuple(events), listing.revision)
        self._listed.set()
        self._retry.succeeded()
        return listing.kvs

    def _disproof(self, found: Mapping[str, KeyValue]) -> str | None:
        """Why this is another history, or None: a key has an older revision than the one that was seen, or the owner of
        this informer finds a contradiction."""
        for key, item in found.items():
            held = self._keys.get(key)
            if held is not None and item.mod_revision < held.mod_revision:
                return f"{key} was last written at revision {item.mod_revision}, and was at {held.mod_revision}"
        return self._contradicts(found) if self._listed.is_set() else None

    def _reset(self) -> None:
        self._keys.clear()
        self.records.clear()
        self._revision = 0
        self._listed.clear()
        self._on_reset()

    def _take(self, events: tuple[Event, ...], revision: int) -> None:
        self._revision = revision
        for event in events:
            if event.kind == "put":
                self._keys[event.kv.key] = event.kv
            else:
                self._keys.pop(event.kv.key, None)
            self._decode_one(event)
        if events or not self._listed.is_set():
            self._on_change(events)
        self._moved.set()

    def _decode_one(self, event: Event) -> None:
        if self._decode is None:
            return
        record = self._decode(event.kv.value) if event.kind == "put" else None
        if record is None:
            self.records.pop(event.kv.key, None)
        else:
            self.records[event.kv.key] = record


def _same(left: KeyValue | None, right: KeyValue) -> bool:
    return left is not None and left.mod_revision == right.mod_revision
