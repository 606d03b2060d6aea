"""What a watch covered and delivered, as its client saw it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from instep.testing.checkers.jsonl import record
from instep.testing.checkers.operation import Value

if TYPE_CHECKING:
    from instep.etcd import WatchBatch


@record
@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change of one key. The value of a delete is None."""

    kind: Literal["put", "delete"]
    key: str
    revision: int
    value: Value | None = None

    def __str__(self) -> str:
        return f"revision {self.revision}, {self.kind} of {self.key}"


@record
@dataclass(frozen=True, slots=True)
class WatchStarted:
    """The start of a watch, or of the next part of a resumed one: it must deliver every event from `start_revision` on.

    `key`: the prefix, or with `prefix=False` the single key. A watch "from now" starts one above the revision at which
    etcd created it; 0 means that the start is unknown. `relisted`: the client listed the keys again just before (after
    a compaction), so events between the last one and this start may be missing.
    """

    watch: str
    key: str
    start_revision: int
    prefix: bool = True
    relisted: bool = False

    def asks_for(self, key: str) -> bool:
        """Whether the watch covers `key`."""
        return key.startswith(self.key) if self.prefix else key == self.key


@record
@dataclass(frozen=True, slots=True)
class WatchReceived:
    """One response. `progress`: a bookmark, so everything up to `revision` was delivered before it."""

    watch: str
    revision: int
    events: tuple[WatchEvent, ...] = ()
    progress: bool = False


def received(watch: str, batch: WatchBatch) -> WatchReceived:
    """The record of a batch from Instep's client."""
    events = tuple(
        WatchEvent(event.kind, event.kv.key, event.kv.mod_revision, event.kv.value if event.kind == "put" else None)
        for event in batch.events
    )
    return WatchReceived(watch, batch.revision, events)
