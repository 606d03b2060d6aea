"""How the agent observes its workers' progress, and which times do not count as a stall."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from instep.agent.stall import is_stalled
from instep.agent.workers import LocalWorker, Workers
from instep.protocol.records import Leader, Member
from instep.wire.frames import Words, create_words
from instep.wire.messages import FromAgent, Leads
from unit.parts import SCHEMA, incarnation

TIMEOUT_S = 10.0


class FakeConnection:
    """A worker's connection: its shared words, and the messages that it received."""

    pid = 1

    def __init__(self, words: Words | None) -> None:
        self.words = words
        self.told: list[FromAgent] = []

    def send(self, message: FromAgent) -> None:
        self.told.append(message)

    def close(self) -> None: ...

    def passes(self, step: int, at: float) -> None:
        assert self.words is not None
        self.words.integers[1], self.words.floats[2] = step, at


@pytest.fixture
def connection() -> Iterator[FakeConnection]:
    words, descriptor = create_words()
    os.close(descriptor)
    yield FakeConnection(words)
    words.close()


def local_worker(connection: FakeConnection) -> LocalWorker:
    member = Member(
        rank=0, world_size=1, incarnation=incarnation(1), node="a", host="h", pid=1, schema_digest=SCHEMA.digest
    )
    return LocalWorker(member, SCHEMA, cast(Any, connection), view=1)


def watched(connection: FakeConnection, until: float) -> tuple[Workers, LocalWorker]:
    """A worker with steps of 1 s up to that time, checked every second."""
    workers, worker = Workers(), local_worker(connection)
    workers.add(worker)
    for second in range(int(until) + 1):
        connection.passes(second, float(second))
        workers.look(float(second), None)
    return workers, worker


def test_a_continuing_worker_measures_its_own_steps(connection: FakeConnection) -> None:
    _, worker = watched(connection, 20)
    assert worker.progress().step_time_s == pytest.approx(1.0)
    assert worker.progress().silence_s(20.5) == pytest.approx(0.5)


def test_a_worker_that_stops_is_stalled_after_the_timeout(connection: FakeConnection) -> None:
    workers, worker = watched(connection, 20)
    for second in range(21, 43):
        workers.look(float(second), None)
        assert is_stalled(worker.progress(), second, TIMEOUT_S) == (second > 40)


def test_time_while_the_agent_was_stopped_is_no_stall(connection: FakeConnection) -> None:
    workers, worker = watched(connection, 20)
    workers.look(1000.0, None)
    assert not is_stalled(worker.progress(), 1000.0, TIMEOUT_S)
    assert worker.progress().silence_s(1001.0) == 1.0


def test_a_pause_is_no_stall_and_restarts_the_timer(connection: FakeConnection) -> None:
    workers, worker = watched(connection, 20)
    for second in range(21, 500):
        workers.look(float(second), 21)
        assert not is_stalled(worker.progress(), second, TIMEOUT_S)
    workers.look(500.0, None)
    assert worker.progress().silence_s(500.0) == 1.0


def test_a_worker_that_has_not_reached_the_pause_can_stall(connection: FakeConnection) -> None:
    workers, worker = watched(connection, 20)
    for second in range(21, 43):
        workers.look(float(second), 30)
    assert is_stalled(worker.progress(), 42, TIMEOUT_S)


def test_a_worker_that_reconnects_keeps_its_pace(connection: FakeConnection) -> None:
    workers, worker = watched(connection, 20)
    worker.excused_until = 77.0
    again = local_worker(FakeConnection(connection.words))
    workers.add(again)
    assert (again.pace, again.excused_until) == (worker.pace, 77.0)


def test_each_worker_learns_whether_it_leads_and_of_each_new_token(connection: FakeConnection) -> None:
    workers = Workers()
    workers.add(local_worker(connection))
    leader = Leader(node="a", rank=0, incarnation=incarnation(1), candidate="c", token=7)
    for told in (None, None, leader, leader, leader.model_copy(update={"token": 9}), None):
        workers.notify_leader(told)
    assert [message.token for message in connection.told if isinstance(message, Leads)] == [0, 7, 9, 0]
