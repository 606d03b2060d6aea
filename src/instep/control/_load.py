"""Reading a run: few requests, all at one revision, so that what is told together was true together."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any

from instep.control._picture import Picture
from instep.control._rendezvous import rendezvous_keys
from instep.errors import Compacted, EtcdFull
from instep.etcd import Client, Listing, Op
from instep.protocol.keys import Keys
from instep.tasks import all_of

PLANS_READ = 12
"""The newest plans that a reading looks at, unless told otherwise: enough to see the attempts of an open change."""
RECEIPTS_READ = 4
"""The newest plans whose acks and receipts are read: two keys a node each."""
PAGE_SIZE = 2000
_TRIES = 3


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
) -> Picture:
    """The run at one revision, that of the picture. Members and metrics are one key a rank, the rendezvous is one a
    node: read only when asked, and so are all checkpoints but the newest, and the starts of the newest views."""
    for attempt in range(_TRIES):
        changes = client.history.changes
        try:
            picture = await _load(client, keys, plans, receipts, members, metrics, checkpoints, rendezvous, starts)
        except Compacted:
            if attempt == _TRIES - 1:
                raise
        else:
            if client.history.changes == changes or attempt == _TRIES - 1:
                return picture  # else parts of it may be of two histories
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
) -> Picture:
    revision, parts = await _first(client, keys)
    picture = Picture(keys, revision=revision)
    for part in parts:
        picture.put_all(part.kvs)
    more = [client.range(keys.plans, revision=revision, newest_first=True, limit=2 * plans)]
    if members:
        more.append(client.range(keys.members, revision=revision, page_size=PAGE_SIZE))
    if checkpoints:
        more.append(client.range(keys.checkpoints, revision=revision))
    elif picture.latest is not None:
        # The key itself is the first of those that begin with it.
        more.append(client.range(keys.checkpoint(picture.latest.id), revision=revision, limit=1))
    if metrics:
        more.append(client.range(keys.metrics, revision=revision, page_size=PAGE_SIZE))
    if rendezvous:
        more.append(client.range(rendezvous_keys(keys).root, revision=revision, page_size=PAGE_SIZE))
    if starts:
        # Two keys a view.
        more.append(client.range(keys.starts, revision=revision, newest_first=True, limit=2 * starts))
    for listing in await together(more):
        picture.put_all(listing.kvs)
    await load_receipts(client, picture, sorted(picture.plans)[-receipts:] if receipts else (), revision)
    picture.revision = revision
    return picture


async def _first(client: Client, keys: Keys) -> tuple[int, list[Listing]]:
    """What every reading needs, in one request, and its revision."""
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
        # Some versions of etcd refuse any txn while their database is full, also one that only reads.
        revision = (await client.range(keys.config, limit=1)).revision
        return revision, await together([client.range(key, revision=revision) for key in (*single, *prefixes)])
    return result.revision, [part for part in result.results if isinstance(part, Listing)]


async def load_receipts(client: Client, picture: Picture, numbers: Iterable[int], revision: int) -> None:
    """Adds the acks and receipts of these plans, as they stood at `revision`."""
    prefixes = [
        prefix for number in numbers for prefix in (f"{picture.keys.acks}{number}/", picture.keys.receipts_of(number))
    ]
    wanted = [client.range(prefix, revision=revision, page_size=PAGE_SIZE) for prefix in prefixes]
    for listing in await together(wanted):
        picture.put_all(listing.kvs)


async def together(wanted: list[Coroutine[Any, Any, Listing]]) -> list[Listing]:
    """All at once; the first failure ends the rest and is raised as it is."""
    return list(await all_of(*wanted))
