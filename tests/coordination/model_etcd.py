"""An etcd in memory that executes the same messages as a real one.

It knows what the protocol leans on: revisions, create and mod revisions, versions, leases, and the history that a
watch delivers. test_model_etcd.py holds it against a real server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from instep.errors import EtcdError, LeaseLost
from instep.etcd import Compare, DeleteResult, Event, KeyValue, Listing, Op, OpResult, PutResult, TxnResult, WatchBatch

_RELATIONS: dict[int, Callable[[Any, Any], bool]] = {
    0: lambda found, given: bool(found == given),
    1: lambda found, given: bool(found > given),
    2: lambda found, given: bool(found < given),
    3: lambda found, given: bool(found != given),
}
_FIELDS = {0: "version", 1: "create_revision", 2: "mod_revision", 3: "value", 4: "lease"}


class ModelEtcd:
    """One linearizable store. `history` holds every revision that changed something, oldest first, never compacted."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.revision = 1
        self.generation = 0
        """How often it was restored to an earlier revision."""
        self.full = False
        """The database has reached its quota: clients may read and delete, and that is all (some versions refuse even a
        txn that only reads)."""
        self.watchers: list[Callable[[], None]] = []
        self.history: list[WatchBatch] = []
        self._keys: dict[str, KeyValue] = {}
        self._leases: dict[int, set[str]] = {}
        self._renewed_at: dict[int, float] = {}
        self._next_lease = 0x1000
        self._clock = clock
        self._states: dict[int, tuple[dict[str, KeyValue], dict[int, set[str]]]] = {1: ({}, {})}

    def __repr__(self) -> str:
        return f"ModelEtcd({len(self._keys)} keys at revision {self.revision}, {len(self._leases)} leases)"

    # -- reading --------------------------------------------------------------------------------------------------

    def get(self, key: str) -> KeyValue | None:
        return self._keys.get(key)

    def range(self, prefix: str) -> Listing:
        return Listing(tuple(self._keys[key] for key in sorted(self._keys) if key.startswith(prefix)), self.revision)

    def at(self, revision: int) -> Mapping[str, KeyValue]:
        """The keys at an earlier revision of this history."""
        return self._states[revision][0]

    # -- writing --------------------------------------------------------------------------------------------------

    def put(self, key: str, value: str, lease: int = 0) -> int:
        return self.txn((), (Op.put(key, value, lease=lease),)).revision

    def txn(self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()) -> TxnResult:
        """Raises LeaseLost for a put on a lost lease and EtcdError for a key written twice; then it changes nothing."""
        succeeded = all(self._holds(compare.wire) for compare in compares)
        branch = then if succeeded else otherwise
        self._check_branch(branch)
        change = _Change(self)
        results = tuple(change.execute(op.wire) for op in branch)
        self._record(change.events)
        return TxnResult(succeeded, self.revision, results)

    # -- backups ----------------------------------------------------------------------------------------------------

    def go_back(self, revision: int) -> None:
        """Restored from a backup made at that revision, or wiped (1): what came later is gone, and is written again
        under the same numbers. Leases are as they were, with their whole length before them."""
        keys, leases = self._states[revision]
        self._keys, self._leases = dict(keys), {lease: set(held) for lease, held in leases.items()}
        self._renewed_at = dict.fromkeys(self._leases, self._clock())
        self.history = [batch for batch in self.history if batch.revision <= revision]
        self._states = {number: state for number, state in self._states.items() if number <= revision}
        self.revision = revision
        self.generation += 1
        for wake in self.watchers:
            wake()

    # -- leases ---------------------------------------------------------------------------------------------------

    def grant(self) -> int:
        self._next_lease += 1
        self._leases[self._next_lease] = set()
        self._renewed_at[self._next_lease] = self._clock()
        return self._next_lease

    def keep(self, lease: int) -> None:
        """Raises LeaseLost when it is gone."""
        if lease not in self._leases:
            raise LeaseLost("requested lease not found", lease_id=lease)
        self._renewed_at[lease] = self._clock()

    def promote(self) -> None:
        """A new etcd leader: every lease gets its full TTL again."""
        self._renewed_at = dict.fromkeys(self._renewed_at, self._clock())

    def expire(self, before: float) -> None:
        """Expires the leases that were last renewed before that time."""
        for lease in [lease for lease in self._leases if self._renewed_at[lease] < before]:
            self.revoke(lease)

    def revoke(self, lease: int) -> None:
        """Revokes a lease and deletes its keys, in one revision."""
        change = _Change(self)
        for key in sorted(self._leases.pop(lease, set())):
            change.delete([key])
        self._record(change.events)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _holds(self, compare: Any) -> bool:
        if compare.range_end:
            covered = [self._keys[key] for key in self._keys if _covers(compare, key)]
            return all(self._holds_for(compare, found) for found in covered or [None])
        return self._holds_for(compare, self._keys.get(_text(compare.key)))

    def _holds_for(self, compare: Any, found: KeyValue | None) -> bool:
        field = _FIELDS[compare.target]
        if found is None and field == "value":
            return False
        value = getattr(found, field) if found is not None else 0
        return _RELATIONS[compare.result](value, getattr(compare, field))

    def _check_branch(self, branch: Sequence[Op]) -> None:
        puts = [_text(op.wire.request_put.key) for op in branch if _kind(op.wire) == "request_put"]
        leases = [op.wire.request_put.lease for op in branch if _kind(op.wire) == "request_put"]
        deletes = [op.wire.request_delete_range for op in branch if _kind(op.wire) == "request_delete_range"]
        if len(set(puts)) < len(puts) or any(_covers(delete, key) for delete in deletes for key in puts):
            raise EtcdError("duplicate key given in txn request", code="INVALID_ARGUMENT")
        for lease in leases:
            if lease and lease not in self._leases:
                raise LeaseLost("requested lease not found", lease_id=lease)

    def _record(self, events: list[Event]) -> None:
        if events:
            self.revision += 1
            self.history.append(WatchBatch(self.revision, tuple(events)))
            self._states[self.revision] = (dict(self._keys), {key: set(held) for key, held in self._leases.items()})
            for wake in self.watchers:
                wake()


class _Change:
    """The operations of one transaction at one new revision: later ones see the results of earlier ones."""

    def __init__(self, store: ModelEtcd) -> None:
        self._store = store
        self._revision = store.revision + 1
        self.events: list[Event] = []

    def execute(self, op: Any) -> OpResult:
        kind = _kind(op)
        if kind == "request_put":
            self.put(op.request_put)
            return PutResult(self._revision)
        if kind == "request_delete_range":
            keys = [key for key in sorted(self._store._keys) if _covers(op.request_delete_range, key)]
            self.delete(keys)
            return DeleteResult(self._now, len(keys))
        found = [self._store._keys[key] for key in sorted(self._store._keys) if _covers(op.request_range, key)]
        return Listing(tuple(found), self._now)

    @property
    def _now(self) -> int:
        return self._revision if self.events else self._store.revision

    def put(self, request: Any) -> None:
        key = _text(request.key)
        before = self._store._keys.get(key)
        created, version = (before.create_revision, before.version) if before else (self._revision, 0)
        after = KeyValue(key, request.value, created, self._revision, version + 1, request.lease)
        if before is not None and before.lease:
            self._store._leases[before.lease].discard(key)
        if request.lease:
            self._store._leases[request.lease].add(key)
        self._store._keys[key] = after
        self.events.append(Event("put", after))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            gone = self._store._keys.pop(key)
            self._store._leases.get(gone.lease, set()).discard(key)
            self.events.append(Event("delete", KeyValue(key, b"", 0, self._revision, 0, 0)))


def _kind(op: Any) -> str:
    return str(op.WhichOneof("union"))


def _covers(request: Any, key: str) -> bool:
    encoded = key.encode()
    if not request.range_end:
        return bool(encoded == request.key)
    return bool(request.key <= encoded and (request.range_end == b"\0" or encoded < request.range_end))


def _text(key: bytes) -> str:
    return key.decode()
