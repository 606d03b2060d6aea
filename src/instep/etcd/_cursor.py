"""The position of a watch in etcd's history. Pure: responses in, whole revisions out."""

from __future__ import annotations

from typing import Any

from instep.etcd._encoding import event
from instep.etcd._types import Event, KeyValue, WatchBatch

PATIENCE = 3
"""Answers without events after which a stream that was to begin with a known event is taken to have none."""


class Cursor:
    """Delivers every revision from `next_revision` on once, whole and in order, over any streams.

    `next_revision` follows events only, never the revision in a response's header: while a watch catches up,
    the header runs ahead of the events. 0 means "from now", until the first stream's answer pins it.

    A stream that is made again begins with the `anchor`, an event that is known already: delivered last, or of a key
    listed before the watch began. So it is seen whether etcd still has the history that was followed. `changed` says
    what speaks against it, "" while nothing does; `proven` whether that is certain.
    """

    def __init__(self, start_revision: int, anchor: KeyValue | None = None) -> None:
        self.next_revision = start_revision
        self.created_revision = 0
        self.changed = ""
        self.proven = False
        self._anchor = Event("put", anchor) if anchor is not None else None
        self._unproven = 0
        """Answers that may pass before the anchor must arrive; 0 if it has, or if there is none."""
        self._partial: list[Event] = []

    def __repr__(self) -> str:
        return f"Cursor(next_revision={self.next_revision}, partial={len(self._partial)})"

    @property
    def has_anchor(self) -> bool:
        """Whether a new stream can show that it follows the same history."""
        return self._anchor is not None

    @property
    def start_revision(self) -> int:
        """The revision at which the next stream has to begin."""
        if self.created_revision and self._anchor is not None:
            return self._anchor.kv.mod_revision
        return self.next_revision

    def created(self, header_revision: int) -> None:
        """The stream is open. What an earlier stream left incomplete is sent again."""
        self._partial.clear()
        self._unproven = PATIENCE if self.created_revision and self._anchor is not None else 0
        if not self.created_revision:
            self.created_revision = header_revision
        if not self.next_revision:
            self.next_revision = header_revision + 1

    def feed(self, response: Any) -> WatchBatch | None:
        """The batches that can be delivered now. A `fragment` may end inside a revision: that part waits."""
        events = [event(wire_event) for wire_event in response.events]
        if self._unproven:
            self._look_for_anchor(events, response)
        self._partial += [item for item in events if item.kv.mod_revision >= self.next_revision]
        if not self._partial or self.changed:
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
        self._anchor = ready[-1]
        return WatchBatch(revision, tuple(ready))

    def _look_for_anchor(self, events: list[Event], response: Any) -> None:
        assert self._anchor is not None
        revision = self._anchor.kv.mod_revision
        if any(_same(item, self._anchor) for item in events):
            self._unproven = 0
        elif any(item.kv.mod_revision > revision for item in events) or (events and not response.fragment):
            self.changed, self.proven = f"the contents of revision {revision} have changed", True
        elif not events and response.header.revision >= revision:
            self._unproven -= 1
            if not self._unproven:
                self.changed = f"revision {revision} no longer exists"


def _same(left: Event, right: Event) -> bool:
    return (left.kind, left.kv.key, left.kv.mod_revision, left.kv.value) == (
        right.kind,
        right.kv.key,
        right.kv.mod_revision,
        right.kv.value,
    )
