"""The results of the client: frozen values without any protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from instep.errors import EtcdError


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as of `mod_revision`. In a delete event only `key` and `mod_revision` are meaningful."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int

    @property
    def text(self) -> str:
        """The value as UTF-8. Invalid bytes become U+FFFD: use `value` if exactness matters."""
        return self.value.decode("utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class Listing:
    """Keys in order, all as they were at `revision`."""

    kvs: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class PutResult:
    """`revision`: the revision of the write."""

    revision: int


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """`deleted`: the number of deleted keys."""

    revision: int
    deleted: int


OpResult: TypeAlias = PutResult | DeleteResult | Listing


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`results` holds one entry per operation of the branch that ran, in order."""

    succeeded: bool
    revision: int
    results: tuple[OpResult, ...]

    @property
    def found(self) -> list[KeyValue | None]:
        """The first key of each read that ran, in order; None if it found none."""
        return [item.kvs[0] if item.kvs else None for item in self.results if isinstance(item, Listing)]


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a key. For a deletion, `kv` has only the key and the revision."""

    kind: Literal["put", "delete"]
    kv: KeyValue


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All events of one or more whole revisions, in order; `revision` is that of the last event."""

    revision: int
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """`ttl_s` is what etcd granted, which may be more than requested."""

    id: int
    ttl_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The status of one endpoint, or its `error`; then the other fields are empty."""

    endpoint: str
    version: str = ""
    cluster_id: int = 0
    member_id: int = 0
    leader: int = 0
    raft_term: int = 0
    revision: int = 0
    is_learner: bool = False
    alarms: tuple[str, ...] = ()
    error: EtcdError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counts since the client was made."""

    calls: int
    failures: int
    switches: int
    reconnects: int
    reauthentications: int
    watch_resumes: int
    watches: int
