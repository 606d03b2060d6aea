"""The position of a watch in the history, without a server."""

from __future__ import annotations

from typing import Any

from instep.etcd import _wire
from instep.etcd._cursor import Cursor


def response(*revisions: int, fragment: bool = False, header: int = 0) -> Any:
    reply = _wire.WATCH.deserialize(b"")
    reply.header.revision = header
    reply.fragment = fragment
    for number, revision in enumerate(revisions):
        found = reply.events.add()
        found.kv.key = f"{revision}/{number}".encode()
        found.kv.mod_revision = revision
    return reply


def revisions(cursor: Cursor, reply: Any) -> list[int]:
    batch = cursor.feed(reply)
    return [] if batch is None else [e.kv.mod_revision for e in batch.events]


def test_from_now_is_pinned_by_the_first_answer_only() -> None:
    cursor = Cursor(0)
    cursor.created(41)
    assert cursor.next_revision == 42
    cursor.created(50)
    assert (cursor.next_revision, cursor.created_revision) == (42, 41)


def test_an_event_at_or_below_the_pinned_revision_is_not_delivered() -> None:
    cursor = Cursor(0)
    cursor.created(41)
    assert revisions(cursor, response(41, 42)) == [42]


def test_a_header_that_runs_ahead_moves_nothing() -> None:
    cursor = Cursor(5)
    cursor.created(100)
    assert revisions(cursor, response(header=100)) == []
    assert revisions(cursor, response(5, header=100)) == [5]
    assert cursor.next_revision == 6


def test_an_event_that_arrived_already_is_not_delivered_twice() -> None:
    cursor = Cursor(5)
    assert revisions(cursor, response(5, 6)) == [5, 6]
    assert revisions(cursor, response(5, 6, 7)) == [7]


def test_a_revision_split_over_parts_waits_until_it_is_whole() -> None:
    cursor = Cursor(1)
    assert revisions(cursor, response(1, 2, 2, fragment=True)) == [1]
    assert revisions(cursor, response(2, fragment=True)) == []
    assert revisions(cursor, response(2, 3)) == [2, 2, 2, 2, 3]


def test_a_part_left_incomplete_by_a_broken_stream_comes_again_from_its_start() -> None:
    cursor = Cursor(1)
    assert revisions(cursor, response(1, 2, fragment=True)) == [1]
    cursor.created(9)
    assert cursor.next_revision == 2
    assert revisions(cursor, response(2, 2)) == [2, 2]
