"""Group membership: named members, each on the lease of its own session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from instep.errors import EtcdUnavailable, InstepError, LeaseLost, NameTaken, SettingsError
from instep.etcd import Client, Compare, KeyValue, Op
from instep.outage import Outage
from instep.recipes.naming import as_prefix, check_name, check_timeout
from instep.recipes.queue import GONE
from instep.recipes.retry import PASSING, Retry
from instep.recipes.session import Session

log = logging.getLogger("instep")

JOIN_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class GroupMember:
    """`token` is the create revision of its key. It changes each time the member was away."""

    name: str
    value: str
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatistics:
    """Counts since the group was made. `replaced`: another took the name after the lease was lost."""

    joins: int
    rejoins: int
    replaced: int


@dataclass(slots=True)
class _Membership:
    name: str
    value: str
    number: int
    lease_id: int = 0
    """The lease that it was last written on; 0 before."""
    doubtful_on: int = 0
    """The lease of a create that may still arrive."""
    left: bool = False


def _because(trouble: InstepError | None) -> str:
    """The last error that was retried, as the second sentence of a timeout."""
    return "" if trouble is None else f" Trouble with etcd until then: {str(trouble).rstrip('.')}."


def members_of(entries: Iterable[KeyValue], prefix: str) -> Mapping[str, GroupMember]:
    """The members by name, in the order in which they joined."""
    found = [item for item in entries if "/" not in item.key.removeprefix(prefix)]
    found.sort(key=lambda item: (item.create_revision, item.key))
    names = ((item.key.removeprefix(prefix), item) for item in found)
    return MappingProxyType({name: GroupMember(name, item.text, item.create_revision) for name, item in names})


class Group:
    """The members under `prefix`, and at most one membership of this object, on the session's lease.

    Promise: a member is listed until it leaves or its session ends, and joins again when its session has taken a new
    lease. A name has one holder: another session that joins with it gets NameTaken, and no member is evicted silently.
    Limit: a member that died is listed until the TTL of its lease has passed. Between two leases of a session its
    member is away, and another may take its name: then `joined` stays False and the log says so. A key deleted by hand
    is not noticed. `members` returns a moment in the past.
    """

    def __init__(self, client: Client, session: Session, prefix: str) -> None:
        self._client = client
        self._session = session
        self._prefix = as_prefix(prefix)
        self._lock = asyncio.Lock()
        self._ours: _Membership | None = None
        self._trouble: InstepError | None = None
        """The last error that a write has retried; None after it succeeded."""
        self._end: Callable[[], None] = lambda: None
        self._joins = self._rejoins = self._replaced = 0

    def __repr__(self) -> str:
        name = f"{self._ours.name!r}{'' if self.joined else ' (away)'}" if self._ours else "not a member"
        return f"Group({self._prefix}, {name})"

    def statistics(self) -> GroupStatistics:
        """Counts of joins and replacements. A snapshot."""
        return GroupStatistics(joins=self._joins, rejoins=self._rejoins, replaced=self._replaced)

    @property
    def joined(self) -> bool:
        """Whether the member is on a lease that is known to be valid."""
        return self._ours is not None and self._ours.lease_id != 0 and self._ours.lease_id == self._session.lease_id

    async def join(self, name: str, value: str = "", *, timeout_s: float = JOIN_TIMEOUT_S) -> None:
        """Becomes the member `name`. A second call with the same name replaces the value.

        Raises NameTaken at once if another session holds the name, and EtcdUnavailable with the reason if the key could
        not be written in `timeout_s` seconds. Then no key is left, or the session removes it.
        """
        check_timeout(timeout_s)
        check_name(name, "a member")
        if self._ours is not None and self._ours.name != name:
            raise SettingsError(f"This group object is the member {self._ours.name!r} already: leave first.")
        fresh = self._ours is None
        try:
            async with asyncio.timeout(timeout_s), self._lock:
                ours = self._ours = self._ours or _Membership(name, value, self._session.serial())
                ours.value = value
                await self._write(ours)
        except BaseException as error:
            trouble = self._trouble or self._session.trouble
            if fresh:
                await self.leave()
            if isinstance(error, TimeoutError):
                sentence = f"{self._prefix}{name} could not be joined in {timeout_s:g} s.{_because(trouble)}"
                raise EtcdUnavailable(sentence) from trouble
            raise
        if fresh:
            self._joins += 1
            self._end = self._session.each_lease(self._rejoin)

    async def leave(self) -> None:
        """Removes the member. Takes about a second at most; the session finishes it when etcd answers."""
        self._end()
        ours, self._ours = self._ours, None
        if ours is None:
            return
        ours.left = True
        await self._session.clean_up(lambda: self._removed(ours), f"the member {self._prefix}{ours.name}")

    async def members(self) -> Mapping[str, GroupMember]:
        """The current members, by a linearizable read."""
        return members_of((await self._client.range(self._prefix)).kvs, self._prefix)

    # -- inside -----------------------------------------------------------------------------------------------------

    async def _rejoin(self, lease_id: int) -> None:
        async with self._lock:
            ours = self._ours
            if ours is None or ours.lease_id == lease_id:
                return
            try:
                await self._write(ours)
                self._rejoins += 1
            except NameTaken as taken:
                self._replaced += 1
                log.warning("%s: it was taken while the lease was lost", taken)
            except LeaseLost:
                return  # the next lease joins again
            except InstepError as error:
                log.error("%s%s cannot be joined again: %s", self._prefix, ours.name, error)

    async def _write(self, ours: _Membership) -> None:
        """Puts the key on the session's lease, through outages. Raises LeaseLost when the lease is gone."""
        self._trouble = None
        lease_id = await self._session.wait_lease()
        retry = Retry(PASSING, Outage(f"{self._prefix}{ours.name} cannot be written", level=logging.DEBUG))
        while self._session.lease_id == lease_id and not ours.left:
            try:
                if await self._written(ours, lease_id):
                    ours.lease_id, self._trouble = lease_id, None
                    return
            except InstepError as error:
                self._trouble = error
                await retry.failed(error)
        raise LeaseLost(f"The lease of {self._prefix}{ours.name} was lost.", lease_id=lease_id)

    async def _written(self, ours: _Membership, lease_id: int) -> bool:
        key = self._prefix + ours.name
        current = await self._client.get(key)
        if current is not None and not self._session.owns(current.lease):
            raise NameTaken(f"Another session holds the member {key}.", name=ours.name)
        if current is not None and (current.lease, current.text) == (lease_id, ours.value):
            return True
        same = Compare.mod_revision(key, "==", current.mod_revision if current is not None else 0)
        was_doubtful_on, ours.doubtful_on = ours.doubtful_on, lease_id
        try:
            put = Op.put(key, ours.value, lease=lease_id)
            result = await self._client.txn([same, Compare.absent(self._tombstone(ours, lease_id))], [put])
        except InstepError as error:
            if not (isinstance(error, EtcdUnavailable) and error.applied_unknown):
                ours.doubtful_on = was_doubtful_on
            raise
        ours.doubtful_on = was_doubtful_on
        return result.succeeded

    async def _removed(self, ours: _Membership) -> bool:
        async with self._lock:  # after a rejoin that is under way
            return await self._removed_now(ours)

    async def _removed_now(self, ours: _Membership) -> bool:
        key = self._prefix + ours.name
        lease_id = ours.doubtful_on
        if lease_id and lease_id == self._session.lease_id:
            # First, because a late create must not be applied after the read below.
            await self._client.put(self._tombstone(ours, lease_id), "", lease=lease_id)
        if self._ours is not None and self._ours.name == ours.name:
            return True  # joined again since: the key belongs to that membership
        current = await self._client.get(key)
        if current is None or not self._session.owns(current.lease):
            return True
        same = Compare.mod_revision(key, "==", current.mod_revision)
        return (await self._client.txn([same], [Op.delete(key)])).succeeded

    def _tombstone(self, ours: _Membership, lease_id: int) -> str:
        """The key that keeps a late create of this membership from being applied."""
        return f"{self._prefix}{GONE}{ours.name}-{lease_id:x}-{ours.number}"
