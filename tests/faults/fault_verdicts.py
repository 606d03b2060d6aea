"""Records, judged by the checkers."""

from __future__ import annotations

from collections.abc import Sequence

from fault_watching import Follower

from instep.etcd import Event
from instep.testing.checkers import (
    History,
    Operation,
    Reference,
    Verdict,
    WatchEvent,
    WatchStarted,
    check_linearizability,
    check_revisions,
    check_watch,
    received,
)


def assert_watched(follower: Follower, prefix: str, reference: Sequence[Event], last: int) -> None:
    """The watch keeps etcd's six properties, and delivered every event of the reference up to revision `last`."""
    assert follower.error is None, follower.error
    records = [WatchStarted("watch", prefix, follower.start_revision)]
    told = [received("watch", batch) for batch in follower.batches]
    _assert_passed(check_watch([*records, *told], Reference(_events(reference)), delivered_to=last))


def assert_linearizable(history: History) -> None:
    """The registers behaved like one copy, with calls of unknown outcome left open."""
    operations = history.select(Operation)
    _assert_passed(check_linearizability(operations))
    _assert_passed(check_revisions(operations))


def _assert_passed(verdict: Verdict) -> None:
    assert verdict.passed, str(verdict)


def _events(events: Sequence[Event]) -> list[WatchEvent]:
    return [
        WatchEvent(event.kind, event.kv.key, event.kv.mod_revision, event.kv.value if event.kind == "put" else None)
        for event in events
    ]
