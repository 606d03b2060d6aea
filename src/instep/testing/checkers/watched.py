"""What a watch was asked for and what it delivered, as its client saw it."""

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
    """A watch, or the next part of one that its client resumed: every event from `start_revision` on is owed.

    `key`: the prefix asked for, or with `prefix=False` the one key. A watch "from now" starts one above the revision at
    which etcd created it; 0 says that the start is not known. `relisted`: the client has listed the keys anew just
    before (after a compaction), so what came between its last event and this start is not owed.
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
    """One response. `progress`: it is a bookmark, so everything up to `revision` has been delivered before."""

    watch: str
    revision: int
    events: tuple[WatchEvent, ...] = ()
    progress: bool = False


def received(watch: str, batch: WatchBatch) -> WatchReceived:
    """The record of a batch that Instep's client delivered."""
    events = tuple(
        WatchEvent(event.kind, event.kv.key, event.kv.mod_revision, event.kv.value if event.kind == "put" else None)
        for event in batch.events
    )
    return WatchReceived(watch, batch.revision, events)
