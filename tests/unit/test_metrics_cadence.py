"""How often a node writes its metrics: each write is a revision that etcd keeps."""

from __future__ import annotations

from instep.agent.metrics import BUSY_S, IDLE_INTERVAL_S, Cadence

DAY_S = 86_400


def writes(cadence: Cadence, seconds: range, *, world_size: int = 8, urgent: bool = False) -> list[int]:
    """The seconds at which it writes, if checked each second."""
    found = []
    for now in seconds:
        if cadence.is_due(now, world_size, urgent=urgent):
            cadence.written(now)
            found.append(now)
    return found


def test_an_idle_run_writes_metrics_a_tenth_as_often() -> None:
    assert len(writes(Cadence(), range(DAY_S))) <= DAY_S / IDLE_INTERVAL_S


def test_after_an_event_metrics_are_written_each_second_for_a_while() -> None:
    cadence = Cadence()
    writes(cadence, range(100))
    cadence.run_changed(100)
    found = writes(cadence, range(100, 200))
    assert found[: int(BUSY_S)] == list(range(100, 100 + int(BUSY_S)))
    assert len(found) < BUSY_S + 100 / IDLE_INTERVAL_S


def test_new_metrics_are_written_at_once() -> None:
    cadence = Cadence()
    writes(cadence, range(101))
    assert writes(cadence, range(101, 102)) == []
    assert writes(cadence, range(101, 102), urgent=True) == [101]


def test_a_large_run_writes_no_more_often() -> None:
    cadence = Cadence()
    cadence.run_changed(0)
    assert len(writes(cadence, range(60), world_size=10_000)) == 3
