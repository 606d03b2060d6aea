"""Watches: the six properties that etcd promises, and that no event is invented or missing at the end.

The properties are those of etcd's API guarantees page (https://etcd.io/docs/v3.5/learning/api_guarantees/), which
etcd's robustness tests check too. A watch that broke and was resumed by its client counts as one watch and must keep
them across its parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from instep.testing.checkers.reference import Reference
from instep.testing.checkers.verdict import Findings, Verdict, Violation
from instep.testing.checkers.watched import WatchEvent, WatchReceived, WatchStarted

UNKNOWN = 1 << 62


@dataclass(slots=True)
class _Part:
    """A watch from one start to the next."""

    start: WatchStarted
    responses: list[WatchReceived] = field(default_factory=list)

    def events(self) -> Iterator[WatchEvent]:
        for response in self.responses:
            yield from response.events


@dataclass(slots=True)
class _Watch:
    name: str
    parts: list[_Part] = field(default_factory=list)

    def responses(self) -> Iterator[WatchReceived]:
        for part in self.parts:
            yield from part.responses

    def events(self) -> Iterator[WatchEvent]:
        for part in self.parts:
            yield from part.events()

    def segments(self) -> Iterator[tuple[WatchStarted, list[WatchEvent]]]:
        """Sections without a known gap: a new start after a listing begins another section."""
        start: WatchStarted | None = None
        events: list[WatchEvent] = []
        for part in self.parts:
            if start is None or part.start.relisted:
                if start is not None:
                    yield start, events
                start, events = part.start, []
            events.extend(part.events())
        if start is not None:
            yield start, events


def check_watch(
    records: Iterable[WatchStarted | WatchReceived],
    reference: Reference,
    *,
    delivered_to: int | Mapping[str, int] = 0,
) -> Verdict:
    """Whether every watch was ordered, unique, atomic, reliable, resumable and bookmarkable, and matches `reference`.

    `delivered_to`: the revision (or one per watch) up to which everything must have arrived; 0 does not check the end,
    as etcd gives no bound. The records of one watch are in the order in which its client received them; records of
    other watches may be between them. Revisions outside the reference are only checked against each other.
    """
    watches = _gather(records)
    findings = Findings("watch")
    for watch in watches.values():
        findings.checked += sum(1 for _ in watch.responses())
        end = delivered_to if isinstance(delivered_to, int) else delivered_to.get(watch.name, 0)
        for rule in (ordered, unique):
            findings.extend(rule(watch))
        for judge_by in (atomic, reliable, resumable, bookmarkable, genuine):
            findings.extend(judge_by(watch, reference))
        findings.extend(complete(watch, reference, end))
    return findings.verdict(f"{len(watches)} watches" if watches else "")


def ordered(watch: _Watch) -> Iterator[Violation]:
    """Events arrive in order of revision."""
    last = 0
    for event in watch.events():
        if event.revision < last:
            yield Violation("ordered", f"{watch.name} delivered {event} after revision {last}")
        last = max(last, event.revision)


def unique(watch: _Watch) -> Iterator[Violation]:
    """No event arrives twice, even after the watch was resumed."""
    seen: set[tuple[int, str]] = set()
    for event in watch.events():
        if (event.revision, event.key) in seen:
            yield Violation("unique", f"{watch.name} delivered {event} twice")
        seen.add((event.revision, event.key))


def atomic(watch: _Watch, reference: Reference) -> Iterator[Violation]:
    """All events of one revision arrive in one response."""
    last: int | None = None
    for part in watch.parts:
        for response in part.responses:
            revisions = [event.revision for event in response.events]
            if last is not None and revisions and revisions[0] == last:
                yield Violation("atomic", f"{watch.name} delivered revision {last} in two responses")
            last = revisions[-1] if revisions else last
            for revision in dict.fromkeys(revisions):
                came = {event.key for event in response.events if event.revision == revision}
                lacking = [e for e in reference.at(revision, part.start) if e.key not in came]
                if lacking:
                    yield Violation("atomic", f"{watch.name} delivered revision {revision} without {lacking[0].key}")


def reliable(watch: _Watch, reference: Reference) -> Iterator[Violation]:
    """No watch delivers the first and third of three consecutive events without the second."""
    for start, events in watch.segments():
        if events:
            revisions = {event.revision for event in events}
            between = reference.between(start, min(revisions), max(revisions))
            yield from _missing("reliable", watch, between, revisions)


def resumable(watch: _Watch, reference: Reference) -> Iterator[Violation]:
    """A watch from a revision on starts with the first event from that revision on."""
    for part in watch.parts:
        first = next(part.events(), None)
        start = part.start
        if first is None or not start.start_revision:
            continue
        if first.revision < start.start_revision:
            sentence = f"{watch.name}, started from revision {start.start_revision}, began with {first}"
            yield Violation("resumable", sentence)
        passed_over = next(iter(reference.between(start, start.start_revision, first.revision - 1)), None)
        if passed_over is not None:
            sentence = f"{watch.name}, started from revision {start.start_revision}, passed over {passed_over}"
            yield Violation("resumable", sentence)


def bookmarkable(watch: _Watch, reference: Reference) -> Iterator[Violation]:
    """After a response without events that names a revision, everything up to it has been delivered."""
    bookmark = 0
    for part in watch.parts:
        came: set[int] = set()
        # If the start of a part is unknown, it is only checked after its first bookmark.
        told_to = part.start.start_revision - 1 if part.start.start_revision else UNKNOWN
        for response in part.responses:
            for event in response.events:
                came.add(event.revision)
                if event.revision <= bookmark:
                    yield Violation("bookmarkable", f"{watch.name} delivered {event} after the bookmark {bookmark}")
            if response.progress:
                for event in reference.between(part.start, told_to + 1, response.revision):
                    if event.revision not in came:
                        sentence = f"{watch.name} got the bookmark {response.revision} before {event}"
                        yield Violation("bookmarkable", sentence)
                bookmark = max(bookmark, response.revision)
                told_to = bookmark
                came.clear()


def genuine(watch: _Watch, reference: Reference) -> Iterator[Violation]:
    """Every event happened as delivered, on a key that the watch covers."""
    for part in watch.parts:
        for event in part.events():
            if not part.start.asks_for(event.key):
                yield Violation("genuine", f"{watch.name} delivered {event}, which it does not cover")
            elif reference.covers(event.revision) and event not in reference.at(event.revision, part.start):
                yield Violation("genuine", f"{watch.name} delivered {event}, which did not happen like that")


def complete(watch: _Watch, reference: Reference, delivered_to: int) -> Iterator[Violation]:
    """Everything up to the caller's revision has arrived by the end. etcd itself does not promise that."""
    segments = list(watch.segments())
    if not segments:
        return
    start, events = segments[-1]
    last = max((event.revision for event in events), default=start.start_revision - 1)
    if last >= 0:
        yield from _missing("complete", watch, reference.between(start, last + 1, delivered_to), set())


def _missing(rule: str, watch: _Watch, wanted: Iterable[WatchEvent], came: set[int]) -> Iterator[Violation]:
    for event in wanted:
        if event.revision not in came:
            yield Violation(rule, f"{watch.name} never delivered {event}")


def _gather(records: Iterable[WatchStarted | WatchReceived]) -> dict[str, _Watch]:
    watches: dict[str, _Watch] = {}
    for item in records:
        watch = watches.setdefault(item.watch, _Watch(item.watch))
        if isinstance(item, WatchStarted):
            watch.parts.append(_Part(item))
        elif watch.parts:
            watch.parts[-1].responses.append(item)
        else:
            watch.parts.append(_Part(WatchStarted(item.watch, "", 0), [item]))
    return watches
