"""Reading a run from etcd: few requests, all at one revision, and watches that continue from there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from instep.connect import open_client
from instep.control._cache import RunCache
from instep.control._torchrun import rendezvous_keys
from instep.errors import Compacted, EtcdFull
from instep.etcd import Client, Event, Listing, Op
from instep.protocol.keys import Keys
from instep.settings import Settings
from instep.tasks import Background, all_of

PLANS_READ = 12
"""The newest plans that `load` reads by default: enough to see the attempts of an open change."""
RECEIPTS_READ = 4
"""The newest plans whose acks and receipts are read: two keys per node each."""
PAGE_SIZE = 2000
_TRIES = 3


_Item = Event | Exception
TIMEOUT_S = 5.0
"""How long an operator's request waits for one answer of etcd: longer than an agent's."""


async def load(
    client: Client,
    keys: Keys,
    *,
    plans: int = PLANS_READ,
    receipts: int = RECEIPTS_READ,
    members: bool = False,
    metrics: bool = False,
    checkpoints: bool = False,
    rendezvous: bool = False,
    starts: int = 0,
) -> RunCache:
    """The run at one revision, that of the cache. Members and metrics have one key per rank, the rendezvous has one per
    node: they are read only on request, like all checkpoints but the newest, and the starts of the newest views."""
    for attempt in range(_TRIES):
        changes = client.history.changes
        try:
            cache = await _load(client, keys, plans, receipts, members, metrics, checkpoints, rendezvous, starts)
        except Compacted:
            if attempt == _TRIES - 1:
                raise
        else:
            if client.history.changes == changes or attempt == _TRIES - 1:
                return cache  # otherwise parts of it may be from two histories
    raise AssertionError("the last try returns or raises")


async def _load(
    client: Client,
    keys: Keys,
    plans: int,
    receipts: int,
    members: bool,
    metrics: bool,
    checkpoints: bool,
    rendezvous: bool,
    starts: int,
) -> RunCache:
    revision, parts = await _first(client, keys)
    cache = RunCache(keys, revision=revision)
    for part in parts:
        cache.put_all(part.kvs)
    more = [client.range(keys.plans, revision=revision, newest_first=True, limit=2 * plans)]
    if members:
        more.append(client.range(keys.members, revision=revision, page_size=PAGE_SIZE))
    if checkpoints:
        more.append(client.range(keys.checkpoints, revision=revision))
    elif cache.latest is not None:
        # The key itself is the first of those that begin with it.
        more.append(client.range(keys.checkpoint(cache.latest.id), revision=revision, limit=1))
    if metrics:
        more.append(client.range(keys.metrics, revision=revision, page_size=PAGE_SIZE))
    if rendezvous:
        more.append(client.range(rendezvous_keys(keys).root, revision=revision, page_size=PAGE_SIZE))
    if starts:
        # Two keys per view.
        more.append(client.range(keys.starts, revision=revision, newest_first=True, limit=2 * starts))
    for listing in await all_of(*more):
        cache.put_all(listing.kvs)
    await load_receipts(client, cache, sorted(cache.plans)[-receipts:] if receipts else (), revision)
    cache.revision = revision
    return cache


async def _first(client: Client, keys: Keys) -> tuple[int, list[Listing]]:
    """What every caller needs, in one request, and its revision."""
    single = (
        keys.view,
        keys.agreed,
        keys.leader,
        keys.epoch,
        keys.schema,
        keys.latest,
        keys.saving,
        keys.attempts,
        keys.failed_saves,
    )
    prefixes = (keys.config, keys.changes, keys.rejected, keys.left, keys.commands, keys.declined)
    try:
        result = await client.txn([], [*map(Op.get, single), *map(Op.range, prefixes)])
    except EtcdFull:
        # Some versions of etcd refuse every txn while their database is full, even one that only reads.
        revision = (await client.range(keys.config, limit=1)).revision
        parts = await all_of(*(client.range(key, revision=revision) for key in (*single, *prefixes)))
        return revision, list(parts)
    return result.revision, [part for part in result.results if isinstance(part, Listing)]


async def load_receipts(client: Client, cache: RunCache, numbers: Iterable[int], revision: int) -> None:
    """Add the acks and receipts of these plans, as of `revision`."""
    prefixes = [
        prefix for number in numbers for prefix in (f"{cache.keys.acks}{number}/", cache.keys.receipts_of(number))
    ]
    wanted = (client.range(prefix, revision=revision, page_size=PAGE_SIZE) for prefix in prefixes)
    for listing in await all_of(*wanted):
        cache.put_all(listing.kvs)


class MultiWatch:
    """Several watches as one stream of events: in order for each prefix, without an order between prefixes.

    An async context manager, for one consumer. `next` raises the error of any watch (above all Compacted, and
    HistoryChanged, also when a connection broke and nothing shows that etcd's history is still the same).
    """

    def __init__(self, client: Client, history_changes: int) -> None:
        """`history_changes`: the client's count of them before the read."""
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
        """Watch `prefix` from a revision on. A second call for it does nothing."""
        if prefix not in self._prefixes:
            self._prefixes.add(prefix)
            self._watches.start(self._watch(prefix, start_revision))

    def watches(self, prefix: str) -> bool:
        return prefix in self._prefixes

    async def next(self) -> list[Event]:
        """All events that have arrived, at least one. Raises what ended a watch. Cancelling it loses nothing."""
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
        except Exception as error:  # noqa: BLE001  # passed to the consumer, whatever it is
            self._queue.put_nowait(error)


def connect(settings: Settings, *, timeout_s: float = TIMEOUT_S) -> Client:
    """A client for these settings, to be used as an async context manager. It connects on first use.

    Raises SettingsError when a certificate, key or password file cannot be used.
    """
    return open_client(settings, timeout_s)
