"""The properties of watches: each on good records, and on a bad one that no other catches."""

from __future__ import annotations

import pytest

from instep.etcd import Event, KeyValue, WatchBatch
from instep.testing.checkers import (
    Reference,
    Verdict,
    WatchEvent,
    WatchReceived,
    WatchStarted,
    check_watch,
    received,
)

Record = WatchStarted | WatchReceived


def event(revision: int, key: str = "/k/a", value: str | None = "v") -> WatchEvent:
    return WatchEvent("delete" if value is None else "put", key, revision, value)


EVENTS = [
    *(event(2), event(3), event(4, "/k/a"), event(4, "/k/b"), event(5, "/other"), event(6, value=None)),
    *(event(8), event(9)),
]
REFERENCE = Reference(EVENTS)
OURS = {e.revision: [f for f in EVENTS if f.revision == e.revision] for e in EVENTS if e.key.startswith("/k/")}


def started(revision: int, *, relisted: bool = False) -> WatchStarted:
    return WatchStarted("w", "/k/", revision, relisted=relisted)


def got(*revisions: int) -> WatchReceived:
    return WatchReceived("w", revisions[-1], tuple(e for revision in revisions for e in OURS[revision]))


def bookmark(revision: int) -> WatchReceived:
    return WatchReceived("w", revision, progress=True)


OTHER = WatchReceived("v", 5, (event(5, "/other"),))


def rules(verdict: Verdict) -> set[str]:
    return {violation.rule for violation in verdict.violations}


@pytest.mark.parametrize(
    "records",
    [
        [started(2), got(2), got(3, 4), got(6), got(8, 9)],
        [started(3), got(3), got(4)],
        [started(2), got(2, 3), bookmark(3), got(4), bookmark(5), got(6), bookmark(7), got(8)],
        [started(2), got(2), started(3), got(3, 4), started(5), bookmark(5), got(6)],
        [started(2), got(2), started(8, relisted=True), got(8)],
        [WatchStarted("w", "/k/", 0), got(6), bookmark(7), got(8)],
        [started(2), got(2), WatchStarted("v", "/other", 5, prefix=False), OTHER, got(3)],
    ],
)  # fmt: skip
def test_these_watches_kept_their_promise(records: list[Record]) -> None:
    verdict = check_watch(records, REFERENCE)
    assert verdict.passed, str(verdict)


@pytest.mark.parametrize(
    ("rule", "records"),
    [
        ("ordered", [started(2), got(2, 4, 3), got(6)]),
        ("unique", [started(2), got(2, 3, 3), got(4)]),
        ("atomic", [started(4), WatchReceived("w", 4, (OURS[4][0],)), WatchReceived("w", 4, (OURS[4][1],)), got(6)]),
        ("atomic", [started(2), got(2, 3), WatchReceived("w", 4, (OURS[4][0],))]),
        ("reliable", [started(2), got(2), got(4)]),
        ("reliable", [started(2), got(2), started(5), got(6)]),
        ("resumable", [started(2), got(3), got(4)]),
        ("resumable", [started(4), got(3), got(4)]),
        ("resumable", [started(2), got(2), started(3, relisted=True), got(4)]),
        ("bookmarkable", [started(2), got(2), bookmark(3), got(3, 4)]),
        ("bookmarkable", [started(2), got(2), bookmark(7)]),
        ("bookmarkable", [started(8), bookmark(8)]),
        ("genuine", [started(2), got(2), WatchReceived("w", 3, (event(3, value="forged"),)), got(4)]),
        ("genuine", [started(2), got(2, 3, 4), WatchReceived("w", 5, (event(5, "/other"),)), got(6)]),
        ("genuine", [started(6), got(6), WatchReceived("w", 7, (event(7),)), got(8)]),
    ],
)
def test_each_property_catches_what_no_other_does(rule: str, records: list[Record]) -> None:
    verdict = check_watch(records, REFERENCE)
    assert verdict.answer == "no"
    assert rules(verdict) == {rule}, str(verdict)


def test_a_missing_end_is_found_if_one_is_required() -> None:
    records = [started(2), got(2), got(3, 4)]
    assert check_watch(records, REFERENCE).passed
    assert check_watch(records, REFERENCE, delivered_to=5).passed
    assert rules(check_watch(records, REFERENCE, delivered_to=6)) == {"complete"}
    assert rules(check_watch(records, REFERENCE, delivered_to={"w": 9})) == {"complete"}
    assert check_watch(records, REFERENCE, delivered_to={"other": 9}).passed


def test_a_watch_that_delivered_nothing_misses_everything() -> None:
    verdict = check_watch([started(4)], REFERENCE, delivered_to=6)
    assert verdict.found == 3
    assert "w never delivered revision 6, delete of /k/a" in str(verdict)


def test_events_that_the_reference_does_not_cover_are_not_checked_against_it() -> None:
    reference = Reference(EVENTS, first_revision=4, last_revision=6)
    records = [started(2), WatchReceived("w", 3, (event(3, value="older"),)), got(4), got(6), got(9)]
    assert check_watch(records, reference).passed


def test_watches_that_disagree_are_found_without_a_reference_of_their_own() -> None:
    other = WatchStarted("v", "/k/", 2)
    records: list[Record] = [
        started(2),
        got(2),
        got(3),
        other,
        WatchReceived("v", 3, (event(2), event(3, value="forged"))),
    ]
    assert rules(check_watch(records, Reference.merged(records))) == {"genuine"}
    missing: list[Record] = [started(2), got(2), got(3), got(4), other, WatchReceived("v", 4, (event(2), *OURS[4]))]
    assert rules(check_watch(missing, Reference.merged(missing))) == {"reliable"}


def test_a_watch_without_responses_is_undecided() -> None:
    assert check_watch([started(2)], REFERENCE).answer == "undecided"


def test_a_batch_of_the_client_becomes_a_record() -> None:
    pair = KeyValue("/k/a", b"1", 2, 2, 1, 0), KeyValue("/k/b", b"", 0, 3, 0, 0)
    batch = WatchBatch(3, (Event("put", pair[0]), Event("delete", pair[1])))
    events = (WatchEvent("put", "/k/a", 2, b"1"), WatchEvent("delete", "/k/b", 3, None))
    assert received("w", batch) == WatchReceived("w", 3, events)
