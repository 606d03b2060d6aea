"""A queue of keys on leases, in the order of their creation. The election uses it.

As in etcd's concurrency package (client/v3/concurrency), each entry waits only for the one before it: the end of one
wakes one, not all. Unlike there, the lease is checked after every wait (etcd issue 19597).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from instep.errors import EtcdFull, EtcdUnavailable, InstepError, LeaseLost
from instep.etcd import Client, Compare, KeyValue, Op
from instep.recipes.fence import Fence
from instep.recipes.naming import as_prefix
from instep.recipes.retry import PASSING, Retry
from instep.recipes.session import Session
from instep.tasks import first_of

log = logging.getLogger("instep")

GONE: Final = ".gone/"
MOST_REMOVED: Final = 40
"""Entries that one transaction removes; etcd allows 128 operations."""


@dataclass(slots=True)
class QueueEntry:
    """The key of this participant. `doubtful`: a transaction that creates it may still arrive, even after its removal.
    `unsaid`: it may exist although etcd refused it for lack of space."""

    key: str
    value: str
    lease_id: int
    name: str = ""
    entered: bool = False
    doubtful: bool = False
    unsaid: bool = False


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """`before` holds the entries ahead, the oldest first."""

    token: int
    before: tuple[KeyValue, ...]


def in_order(entries: Iterable[KeyValue], prefix: str) -> list[KeyValue]:
    """The entries of a queue, the front first."""
    found = [item for item in entries if "/" not in item.key.removeprefix(prefix)]
    return sorted(found, key=lambda item: (item.create_revision, item.key))


def position_of(key: str, queue: Iterable[KeyValue]) -> QueuePosition | None:
    """The position of `key` in a sorted queue; None if it is missing."""
    before: list[KeyValue] = []
    for item in queue:
        if item.key == key:
            return QueuePosition(item.create_revision, tuple(before))
        before.append(item)
    return None


def tombstone(key: str, prefix: str) -> str:
    """The key that keeps a late create of `key` from being applied."""
    return f"{prefix}{GONE}{key.removeprefix(prefix)}"


def removals(former: Iterable[QueueEntry], prefix: str, lease_id: int) -> list[Op]:
    """The operations that remove these entries permanently. An entry of another lease than `lease_id` needs no
    tombstone: it ends with its lease, whenever it is created."""
    ops: list[Op] = []
    for entry in former:
        ops.append(Op.delete(entry.key))
        if entry.doubtful and entry.lease_id == lease_id:
            ops.append(Op.put(tombstone(entry.key, prefix), "", lease=lease_id))
    return ops


class Queue:
    """One participant in the queue under `prefix`: at most one entry, on the session's lease.

    Promise: `turn` returns a fence only if this entry is the oldest and its lease is valid after the last wait. An
    entry that was given up is removed, even if the reply to its creation or removal was lost. Limit: this is true of
    the past. While etcd is unavailable a removal waits, at most until the session's lease has ended.
    """

    def __init__(self, client: Client, session: Session, prefix: str, *, former_lease: int = 0) -> None:
        """`former_lease`: the lease of a process that died and that this one replaces. An entry on it with the name and
        value of the first entry here is taken over, with its position and its token."""
        self.prefix = as_prefix(prefix)
        self._client = client
        self._session = session
        self._former_lease = former_lease
        self._entry: QueueEntry | None = None
        self._former: list[QueueEntry] = []

    def __repr__(self) -> str:
        return f"Queue({self.prefix}, {self._entry.key if self._entry else 'no entry'})"

    @property
    def confirmed(self) -> bool:
        """Whether this entry is known to be in etcd, on a valid lease."""
        entry = self._entry
        return entry is not None and entry.entered and entry.lease_id == self._session.lease_id

    @property
    def lease_id(self) -> int:
        """The lease of the entry; 0 without one."""
        return self._entry.lease_id if self._entry is not None else 0

    async def enter(self, value: str, name: str = "") -> None:
        """Creates the entry on the session's lease, and removes one with another value, name or lease in the same
        transaction. Without a lease it does nothing. Call it again after an error: the entry is not created twice.
        """
        lease_id = self._session.lease_id
        if not lease_id:
            return
        entry = self._wanted(value, name, lease_id)
        if entry.entered or await self._inherit(entry):
            return
        former = self._former[:MOST_REMOVED]
        compares = [Compare.absent(entry.key), Compare.absent(tombstone(entry.key, self.prefix))]
        then = [Op.put(entry.key, value, lease=lease_id), *removals(former, self.prefix, lease_id)]
        was_doubtful, entry.doubtful = entry.doubtful, True  # also if this call is cancelled
        try:
            await self._client.txn(compares, then)  # refused: it exists, because an earlier attempt was applied
        except InstepError as error:
            entry.doubtful = was_doubtful or (isinstance(error, EtcdUnavailable) and error.applied_unknown)
            entry.unsaid = entry.unsaid or isinstance(error, EtcdFull)
            raise
        entry.doubtful = was_doubtful
        entry.entered = True
        self._removed(former)

    async def turn(self) -> Fence | None:
        """Reads the queue once, and waits for the end of the entry ahead, if any. None: call it again, or enter
        again."""
        place, revision = await self._look()
        entry = self._entry
        if place is None or entry is None:
            return None
        if place.before:
            ahead = place.before[-1]
            if not ahead.lease:
                await self._remove_stray(ahead)
                return None
            gone = self._deleted(ahead.key, revision + 1)
            await first_of(gone, self._session.wait_lost(entry.lease_id))
            return None
        return self._fence(entry, place)

    async def win(self, value: str) -> Fence:
        """Enters and waits for the front, through outages and lost leases. Raises LeaseLost if the session ends."""
        retry = Retry(PASSING, f"the queue {self.prefix} cannot be followed")
        fence = None
        while fence is None:
            await self._session.wait_lease()
            try:
                await self.enter(value)
                fence = await self.turn()
            except InstepError as error:
                await retry.failed(error)
            else:
                retry.succeeded()
        return fence

    async def gone(self, fence: Fence) -> None:
        """Returns when the key of the token is gone."""
        async with self._client.watch(fence.key, prefix=False) as watch:
            current = await self._client.get(fence.key)
            if not fence.is_held(current):
                return
            async for batch in watch:
                if any(event.kind == "delete" for event in batch.events):
                    return

    async def leave(self) -> None:
        """Removes the entry. Takes about a second at most; the session finishes it when etcd answers. Raises no error
        of etcd."""
        self._drop()
        if not self._former:
            return
        await self._session.clean_up(self._remove_some, f"an entry of {self.prefix}")

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _inherit(self, entry: QueueEntry) -> bool:
        """Moves an equal entry of the former lease to this lease: a put keeps the create revision, which is the token.
        Its key may name an earlier lease, from which the former process took it over."""
        if not self._former_lease:
            return False
        listing = await self._client.range(self._stem(entry.name))
        for item in in_order(listing.kvs, self.prefix):
            is_former = item.lease == self._former_lease or self._session.owns(item.lease)
            if not is_former or item.text != entry.value:
                continue
            unchanged = Compare.mod_revision(item.key, "==", item.mod_revision)
            put = Op.put(item.key, entry.value, lease=entry.lease_id)
            if item.lease == entry.lease_id or (await self._client.txn([unchanged], [put])).succeeded:
                entry.key, entry.entered = item.key, True
                break
        self._former_lease = 0
        return entry.entered

    async def _look(self) -> tuple[QueuePosition | None, int]:
        """The position of the entry, and the revision of this read."""
        entry = self._entry
        entered = entry is not None and entry.entered
        listing = await self._client.range(self.prefix)
        queue = in_order(listing.kvs, self.prefix)
        if entry is None or entry is not self._entry:
            return None, listing.revision
        place = position_of(entry.key, queue)
        stray = any(item.key == entry.key and not item.lease for item in queue)
        if stray or (place is None and entered):
            self._drop()  # it was deleted or written over, or its lease ended
            return None, listing.revision
        return place, listing.revision

    async def _remove_stray(self, item: KeyValue) -> None:
        """An entry on no lease was written or overwritten by another client and would never end."""
        log.warning("%s is removed: it is on no lease, so it was written by hand and would never end", item.key)
        await self._client.txn([Compare.mod_revision(item.key, "==", item.mod_revision)], [Op.delete(item.key)])

    def _fence(self, entry: QueueEntry, place: QueuePosition) -> Fence | None:
        """The fence, only at the front and with a lease that is valid now, after the wait."""
        leads = not place.before and entry.lease_id == self._session.lease_id
        return Fence(entry.key, place.token) if leads else None

    def _wanted(self, value: str, name: str, lease_id: int) -> QueueEntry:
        entry = self._entry
        if entry is not None and (entry.name, entry.value, entry.lease_id) == (name, value, lease_id):
            return entry
        self._drop()
        # The number makes keys unique: a late request cannot create a removed entry again.
        self._entry = QueueEntry(f"{self._stem(name)}{lease_id:x}-{self._session.serial()}", value, lease_id, name)
        return self._entry

    def _stem(self, name: str) -> str:
        return f"{self.prefix}{name}-" if name else self.prefix

    def _drop(self) -> None:
        entry, self._entry = self._entry, None
        if entry is not None and (entry.entered or entry.doubtful or entry.unsaid):
            self._former.append(entry)

    def _removed(self, former: list[QueueEntry]) -> None:
        self._former = [entry for entry in self._former if entry not in former]

    async def _remove_some(self) -> bool:
        """Removes some former entries. True when none is left."""
        former = self._former[:MOST_REMOVED]
        try:
            await self._client.txn([], removals(former, self.prefix, self._session.lease_id))
        except LeaseLost:
            await self._client.txn([], removals(former, self.prefix, 0))
        self._removed(former)
        return not self._former

    async def _deleted(self, key: str, revision: int) -> None:
        """Returns when the key is deleted, or is on no lease any more."""
        async with self._client.watch(key, prefix=False, start_revision=revision) as watch:
            async for batch in watch:
                if any(event.kind == "delete" or not event.kv.lease for event in batch.events):
                    return
