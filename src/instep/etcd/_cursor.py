"""Where a watch stands in etcd's history. Pure: responses in, whole revisions out."""

from __future__ import annotations

from typing import Any

from instep.etcd._encoding import event
from instep.etcd._types import Event, WatchBatch


class Cursor:
    """Delivers every revision from `next_revision` on once, whole and in order, over any streams.

    `next_revision` follows events only, never the revision in a response's header: while a watch catches up,
    the header runs ahead of the events. 0 means "from now", until the first stream's answer pins it.
    """

    def __init__(self, start_revision: int) -> None:
        self.next_revision = start_revision
        self.created_revision = 0
        self._partial: list[Event] = []

    def __repr__(self) -> str:
        return f"Cursor(next_revision={self.next_revision}, partial={len(self._partial)})"

    def created(self, header_revision: int) -> None:
        """The stream stands. What an earlier stream left incomplete comes again."""
        self._partial.clear()
        if not self.created_revision:
            self.created_revision = header_revision
        if not self.next_revision:
            self.next_revision = header_revision + 1

    def feed(self, response: Any) -> WatchBatch | None:
        """What can be delivered now. A `fragment` may end inside a revision: that part waits."""
        for wire_event in response.events:
            if wire_event.kv.mod_revision >= self.next_revision:
                self._partial.append(event(wire_event))
        if not self._partial:
            return None
        ready = self._partial
        self._partial = []
        if response.fragment:
            last = ready[-1].kv.mod_revision
            cut = next(i for i, e in enumerate(ready) if e.kv.mod_revision == last)
            ready, self._partial = ready[:cut], ready[cut:]
        if not ready:
            return None
        revision = ready[-1].kv.mod_revision
        self.next_revision = revision + 1
        return WatchBatch(revision, tuple(ready))
