"""A queue of keys on leases, in the order of their creation: what the election is made of.

After etcd's concurrency package (client/v3/concurrency): each waits for the one before it only, so that the end of one
wakes one and not all. Unlike there, a lease is checked after every wait (etcd issue 19597).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from instep.coordination.fence import Fence
from instep.coordination.naming import as_prefix
from instep.coordination.retry import PASSING, Retry
from instep.coordination.session import Session
from instep.errors import EtcdFull, EtcdUnavailable, InstepError, LeaseLost
from instep.etcd import Client, Compare, KeyValue, Op
from instep.tasks import first_of

GONE: Final = ".gone/"
MOST_REMOVED: Final = 40
"""Entries removed by one txn; etcd allows 128 operations."""


@dataclass(slots=True)
class QueueEntry:
    """Our key. `doubtful`: a txn that would create it may still be on its way, and could arrive after its removal.
    `unsaid`: it may be there, although etcd has refused it for want of space."""

    key: str
    value: str
    lease_id: int
    name: str = ""
    entered: bool = False
    doubtful: bool = False
    unsaid: bool = False


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """`before` holds those who come first, the oldest first."""

    token: int
    before: tuple[KeyValue, ...]


def in_order(entries: Iterable[KeyValue], prefix: str) -> list[KeyValue]:
    """The entries of a queue, the one in front first."""
    found = [item for item in entries if "/" not in item.key.removeprefix(prefix)]
    return sorted(found, key=lambda item: (item.create_revision, item.key))


def position_of(key: str, queue: Iterable[KeyValue]) -> QueuePosition | None:
    """Where `key` stands in a queue that is in order; None when it is not there."""
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
    """What takes these entries away for good. One of another lease than `lease_id` needs no tombstone: it ends with its
    lease, whenever it is created."""
    ops: list[Op] = []
    for entry in former:
        ops.append(Op.delete(entry.key))
        if entry.doubtful and entry.lease_id == lease_id:
            ops.append(Op.put(tombstone(entry.key, prefix), "", lease=lease_id))
    return ops


class Queue:
    """One participant's place in the queue under `prefix`: at most one entry, on the session's lease.

    Promise: `turn` gives a fence only while our entry is the oldest and our lease is valid after the last wait; an
    entry that was given up is removed, also when the reply to its creation or its removal was lost. Limit: that is
    true of the past; and while etcd is away a removal waits for it, at most until the session's lease has ended.
    """

    def __init__(self, client: Client, session: Session, prefix: str, *, former_lease: int = 0) -> None:
        """`former_lease`: the lease of a process that died and whose place this one takes. An entry on it that has the
        name and value of our first one becomes ours, with its place and its token."""
        self.prefix = as_prefix(prefix)
        self._client = client
        self._session = session
        self._former_lease = former_lease
        self._entry: QueueEntry | None = None
        self._former: list[QueueEntry] = []

    def __repr__(self) -> str:
        return f"Queue({self.prefix}, {self._entry.key if self._entry else 'no entry'})"

    @property
    def standing(self) -> bool:
        """Whether our entry is in etcd, as far as we know, on a lease that can be relied on."""
        entry = self._entry
        return entry is not None and entry.entered and entry.lease_id == self._session.lease_id

    @property
    def lease_id(self) -> int:
        """That of our entry; 0 without one."""
        return self._entry.lease_id if self._entry is not None else 0

    async def enter(self, value: str, name: str = "") -> None:
        """Creates our entry on the session's lease; one of another value, name or lease goes in the same txn.

        Without a lease this does nothing. After an error call it again: the entry is not created twice.
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
        was_doubtful, entry.doubtful = entry.doubtful, True  # also when this call is cancelled
        try:
            await self._client.txn(compares, then)  # refused: it exists, an earlier attempt was applied
        except InstepError as error:
            entry.doubtful = was_doubtful or (isinstance(error, EtcdUnavailable) and error.applied_unknown)
            entry.unsaid = entry.unsaid or isinstance(error, EtcdFull)
            raise
        entry.doubtful = was_doubtful
        entry.entered = True
        self._removed(former)

    async def turn(self) -> Fence | None:
        """One look and, behind somebody, one wait for that entry's end. None: look again, or enter again."""
        place, revision = await self._look()
        entry = self._entry
        if place is None or entry is None:
            return None
        if place.before:
            gone = self._deleted(place.before[-1].key, revision + 1)
            await first_of(gone, self._session.wait_lost(entry.lease_id))
            return None
        return self._fence(entry, place)

    async def win(self, value: str) -> Fence:
        """Enters, again where need be, and waits until it is our turn. Rides out outages; cancel it to stop."""
        retry = Retry(PASSING, f"the queue {self.prefix} cannot be followed")
        fence = None
        while fence is None:
            fence = await retry.run(lambda: self._attempt(value))
        return fence

    async def gone(self, fence: Fence) -> None:
        """Returns when the key that carried the token is gone."""
        async with self._client.watch(fence.key, prefix=False) as watch:
            current = await self._client.get(fence.key)
            if not fence.is_held(current):
                return
            async for batch in watch:
                if any(event.kind == "delete" for event in batch.events):
                    return

    async def leave(self) -> None:
        """Removes our entry now: within about a second, or by the session as soon as etcd answers. Never raises for
        etcd's sake."""
        self._drop()
        if not self._former:
            return
        await self._session.clean_up(self._remove_some, f"an entry of {self.prefix}")

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _attempt(self, value: str) -> Fence | None:
        await self._session.wait_lease()
        await self.enter(value)
        return await self.turn()

    async def _inherit(self, entry: QueueEntry) -> bool:
        """Puts an equal entry of the former lease on ours: a put keeps the create revision, which is the token. Its key
        may name an earlier lease, from which the former process had taken it over itself."""
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
        """Where our entry stands, and the revision of this look."""
        entry = self._entry
        entered = entry is not None and entry.entered
        listing = await self._client.range(self.prefix)
        queue = in_order(listing.kvs, self.prefix)
        place = None if entry is None else position_of(entry.key, queue)
        if entry is not self._entry:
            return None, listing.revision
        if place is None and entered:
            self._drop()  # somebody deleted it, or its lease ended
        return place, listing.revision

    def _fence(self, entry: QueueEntry, place: QueuePosition) -> Fence | None:
        """Only at the front, and with a lease that is still valid now, after the wait."""
        leads = not place.before and entry.lease_id == self._session.lease_id
        return Fence(entry.key, place.token) if leads else None

    def _wanted(self, value: str, name: str, lease_id: int) -> QueueEntry:
        entry = self._entry
        if entry is not None and (entry.name, entry.value, entry.lease_id) == (name, value, lease_id):
            return entry
        self._drop()
        # A number, so that an entry that was removed is never created again by a request that comes late.
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
        """True when none is left."""
        former = self._former[:MOST_REMOVED]
        try:
            await self._client.txn([], removals(former, self.prefix, self._session.lease_id))
        except LeaseLost:
            await self._client.txn([], removals(former, self.prefix, 0))
        self._removed(former)
        return not self._former

    async def _deleted(self, key: str, revision: int) -> None:
        async with self._client.watch(key, prefix=False, start_revision=revision) as watch:
            async for batch in watch:
                if any(event.kind == "delete" for event in batch.events):
                    return
