"""Reading a run from etcd: few requests, all at one revision, and watches that continue from there."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Self

from instep.connect import open_client
from instep.control._cache import RunCache
from instep.control._report import closest
from instep.control._torchrun import rendezvous_keys
from instep.errors import Compacted, EtcdFull, RunNotFound, SettingsError
from instep.etcd import Client, Event, Op
from instep.names import check_namespace, check_run_name
from instep.protocol.keys import Keys
from instep.settings import Settings
from instep.tasks import Background, all_of

PLANS_READ = 12
"""The newest plans that `load` reads by default: enough to see the attempts of an open change."""
RECEIPTS_READ = 4
"""The newest plans whose acks and receipts are read: two keys per node each."""
PAGE_SIZE = 2000
MAX_RUNS = 20_000
"""The most runs that are found in a namespace."""
_NAMED = 10
_TRIES = 8


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
    must_exist: bool = True,
) -> RunCache:
    """The run at one revision, that of the cache. Members and metrics have one key per rank, the rendezvous has one per
    node: they are read only on request, like all checkpoints but the newest, and the starts of the newest views.

    Raises RunNotFound for a run without any key, unless it need not exist.
    """
    asked = {
        keys.members: members,
        keys.metrics: metrics,
        keys.checkpoints: checkpoints,
        rendezvous_keys(keys).root: rendezvous,
    }
    prefixes = [prefix for prefix, is_asked in asked.items() if is_asked]
    for attempt in range(_TRIES):
        changes = client.history.changes
        try:
            cache = await _load(client, keys, prefixes, {keys.plans: plans, keys.starts: starts}, receipts)
        except Compacted:
            if attempt == _TRIES - 1:
                raise
        else:
            if client.history.changes == changes or attempt == _TRIES - 1:
                break  # otherwise parts of it may be from two histories
    if cache.empty and must_exist:
        await require_run(client, keys)
    return cache


async def _load(
    client: Client, keys: Keys, prefixes: Collection[str], newest: Mapping[str, int], receipts: int
) -> RunCache:
    """`newest` says of how many plans or starts each prefix is read: each has two keys."""
    cache = await _first(client, keys)
    revision = cache.revision
    more = [client.range(prefix, revision=revision, page_size=PAGE_SIZE) for prefix in prefixes]
    more += [
        client.range(prefix, revision=revision, newest_first=True, limit=2 * number)
        for prefix, number in newest.items()
        if number
    ]
    if cache.latest is not None and keys.checkpoints not in prefixes:
        # The key itself is the first of those that begin with it.
        more.append(client.range(keys.checkpoint(cache.latest.id), revision=revision, limit=1))
    for listing in await all_of(*more):
        cache.put_all(listing.kvs)
    await load_receipts(client, cache, sorted(cache.plans)[-receipts:] if receipts else ())
    return cache


async def _first(client: Client, keys: Keys) -> RunCache:
    """What every caller needs, in one request."""
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
        return RunCache.of_txn(keys, await client.txn([], [*map(Op.get, single), *map(Op.range, prefixes)]))
    except EtcdFull:
        # Some versions of etcd refuse every txn while their database is full, even one that only reads.
        cache = RunCache(keys, revision=(await client.range(keys.config, limit=1)).revision)
        for part in await all_of(*(client.range(key, revision=cache.revision) for key in (*single, *prefixes))):
            cache.put_all(part.kvs)
        return cache


async def load_receipts(client: Client, cache: RunCache, numbers: Iterable[int]) -> None:
    """Add the acks and receipts of these plans, as of the cache's revision."""
    prefixes = [
        prefix for number in numbers for prefix in (f"{cache.keys.acks}{number}/", cache.keys.receipts_of(number))
    ]
    wanted = (client.range(prefix, revision=cache.revision, page_size=PAGE_SIZE) for prefix in prefixes)
    for listing in await all_of(*wanted):
        cache.put_all(listing.kvs)


async def run_names(client: Client, namespace: str) -> tuple[str, ...]:
    """Names of the runs that have any key, in etcd's order of keys, at most `MAX_RUNS`."""
    return tuple(await found_runs(client, namespace))


async def found_runs(client: Client, namespace: str) -> dict[str, int]:
    """The runs by name, each with the revision that changed it last, according to its first keys.

    Keys are read page by page, without values. If a run fills a page, its other keys are skipped. So this takes one
    request per run of more than 2000 keys, and one per 2000 keys of the others.
    """
    base = f"{check_namespace(namespace)}/"
    found: dict[str, int] = {}
    start = ""
    while len(found) < MAX_RUNS:
        page = await client.range(base, start=start, limit=PAGE_SIZE, page_size=PAGE_SIZE, keys_only=True)
        for item in page.kvs:
            name, slash, _ = item.key[len(base) :].partition("/")
            if slash and (name in found or _is_run_name(name)):
                found[name] = max(found.get(name, 0), item.mod_revision)
        if len(page.kvs) < PAGE_SIZE:
            break
        name, slash, _ = page.kvs[-1].key[len(base) :].partition("/")
        start = f"{base}{name}{chr(ord('/') + 1) if slash else chr(0)}"  # the first key after those of the last run
    return dict(list(found.items())[:MAX_RUNS])


def _is_run_name(name: str) -> bool:
    try:
        check_run_name(name)
    except SettingsError:
        return False
    return True


async def require_run(client: Client, keys: Keys) -> None:
    """Raises RunNotFound, naming the existing runs, if the run has no key at all."""
    if not (await client.range(keys.root, limit=1, keys_only=True)).kvs:
        raise await run_not_found(client, keys)


async def run_not_found(client: Client, keys: Keys, *, cure: str = "") -> RunNotFound:
    """One sentence: which run is missing, which one was probably meant, and which exist."""
    names = await run_names(client, keys.namespace)
    close = closest(keys.run, names)
    if close is not None:
        hint = f": did you mean {close!r}?"
    elif names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        hint = f": there are {', '.join(names[:_NAMED])}{more}."
    else:
        hint = ": no run exists yet."
    return RunNotFound(f"No run {keys.run!r} is in {keys.namespace}{hint}{cure}")


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
