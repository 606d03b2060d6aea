"""The reference events that watches are checked against."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

from instep.testing.checkers.watched import WatchEvent, WatchReceived, WatchStarted


class Reference:
    """All events of some keys from `first_revision` to `last_revision`, inclusive. Nothing is known outside.

    Take the events from one undisturbed watch, or from a watch from the first revision on after the test. Without given
    limits, the first and last event are the limits.
    """

    def __init__(
        self, events: Iterable[WatchEvent], *, first_revision: int | None = None, last_revision: int | None = None
    ) -> None:
        self._by_revision: dict[int, dict[str, WatchEvent]] = {}
        for event in events:
            self._by_revision.setdefault(event.revision, {}).setdefault(event.key, event)
        self._revisions = sorted(self._by_revision)
        known = self._revisions or [1]
        self.first_revision = known[0] if first_revision is None else first_revision
        self.last_revision = (known[-1] if self._revisions else 0) if last_revision is None else last_revision

    def __repr__(self) -> str:
        return f"Reference({len(self._revisions)} revisions from {self.first_revision} to {self.last_revision})"

    @classmethod
    def merged(cls, records: Iterable[WatchStarted | WatchReceived]) -> Reference:
        """Everything that any of these watches delivered. Limit: an event that all of them missed is not found.

        If two watches disagree about an event, the first one counts, and the other one has a violation.
        """
        return cls(event for item in records if isinstance(item, WatchReceived) for event in item.events)

    def covers(self, revision: int) -> bool:
        """Whether it has all events of this revision."""
        return self.first_revision <= revision <= self.last_revision

    def at(self, revision: int, start: WatchStarted) -> list[WatchEvent]:
        """The events of one revision that the watch covers; none outside the known revisions."""
        if not self.covers(revision):
            return []
        return [event for event in self._by_revision.get(revision, {}).values() if start.asks_for(event.key)]

    def between(self, start: WatchStarted, first: int, last: int) -> Iterator[WatchEvent]:
        """The events from revision `first` to `last` that the watch covers."""
        low = bisect_left(self._revisions, max(first, self.first_revision))
        high = bisect_right(self._revisions, min(last, self.last_revision))
        for revision in self._revisions[low:high]:
            yield from self.at(revision, start)
