"""The worker's end of the socket, with an agent that the test scripts."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from instep.errors import AgentError
from instep.runtime import RuntimeFolder
from instep.settings import Settings
from instep.wire.frames import Decoder, Words, framed, from_worker, receive_with_descriptor
from instep.wire.messages import FromAgent, FromWorker, Hello, Leave, MetricsReport, NewEpoch, SaveFailed
from instep.worker.agent_connection import (
    LOG_TAIL_CHARACTERS,
    MAX_OUTBOX_BYTES,
    AgentConnection,
    ConnectionLost,
    log_tail,
    start_agent,
)

SETTINGS = Settings(endpoints=("http://127.0.0.1:1",))
TIMEOUT_S = 10.0


class ScriptedAgent:
    """Holds the folder's claim, as an agent does, so no link starts a real agent."""

    def __init__(self) -> None:
        self.folder = RuntimeFolder.of("gpt", SETTINGS)
        self._claim = self.folder.claim()
        self._listener: socket.socket | None = None
        self._connection: socket.socket | None = None

    def listen(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(TIMEOUT_S)
        self._listener.bind(str(self.folder.socket))
        self._listener.listen()

    def accept(self) -> socket.socket:
        assert self._listener is not None
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(TIMEOUT_S)
        return self._connection

    @property
    def connection(self) -> socket.socket:
        return self._connection or self.accept()

    def say(self, *messages: FromAgent) -> None:
        self.connection.sendall(b"".join(map(framed, messages)))

    def hang_up(self) -> None:
        self.connection.close()
        self._connection = None

    def close(self) -> None:
        for each in (self._connection, self._listener):
            if each is not None:
                each.close()
        assert self._claim is not None
        os.close(self._claim)


@pytest.fixture
def agent(runtime_dir: Path) -> Iterator[ScriptedAgent]:
    scripted = ScriptedAgent()
    yield scripted
    scripted.close()


@pytest.fixture
def link(agent: ScriptedAgent) -> Iterator[AgentConnection]:
    """Connected to the agent."""
    agent.listen()
    connected = AgentConnection("gpt", SETTINGS)
    assert connected.try_connect()
    yield connected
    connected.close()


def heard(connection: socket.socket, number: int) -> list[FromWorker]:
    decoder, messages = Decoder(from_worker), list[FromWorker]()
    while len(messages) < number:
        messages.extend(decoder.feed(connection.recv(65536)))
    return messages


def test_messages_go_both_ways_in_order(agent: ScriptedAgent, link: AgentConnection) -> None:
    link.send(SaveFailed(1, "one"))
    link.send(SaveFailed(2, "two"))
    assert heard(agent.connection, 2) == [SaveFailed(1, "one"), SaveFailed(2, "two")]
    agent.say(NewEpoch(3), NewEpoch(4))
    link.wait_readable(TIMEOUT_S)
    assert link.receive() == [NewEpoch(3), NewEpoch(4)]


def test_reading_without_a_message_does_not_wait(link: AgentConnection) -> None:
    assert link.receive() == []


def test_the_introduction_brings_the_shared_words(agent: ScriptedAgent, link: AgentConnection) -> None:
    hello = Hello(rank=0, world_size=1, incarnation="a", host="h", pid=1)
    link.introduce(hello)
    data, descriptor = receive_with_descriptor(agent.connection, 65536)
    assert list(Decoder(from_worker).feed(data)) == [hello]
    assert descriptor is not None
    words = Words(descriptor)
    os.close(descriptor)
    link.words.integers[1] = 41
    words.count_message()
    assert (words.step, link.words.messages) == (41, 1)
    words.close()


def test_an_agent_that_closes_the_connection_is_a_lost_link(agent: ScriptedAgent, link: AgentConnection) -> None:
    agent.accept()
    agent.hang_up()
    with pytest.raises(ConnectionLost, match="closed the connection"):
        link.receive()
    assert not link.connected


def test_the_last_message_of_a_lost_agent_is_delivered(agent: ScriptedAgent, link: AgentConnection) -> None:
    agent.say(NewEpoch(3))
    agent.hang_up()
    assert link.receive() == [NewEpoch(3)]
    with pytest.raises(ConnectionLost):
        link.receive()


def test_an_agent_that_sends_invalid_frames_is_a_lost_link(agent: ScriptedAgent, link: AgentConnection) -> None:
    agent.connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ConnectionLost, match="over the limit"):
        link.receive()
    assert not link.connected


def test_a_lost_link_reconnects_and_drops_a_partial_message(agent: ScriptedAgent, link: AgentConnection) -> None:
    agent.connection.sendall(framed(NewEpoch(1))[:-2])
    link.wait_readable(TIMEOUT_S)
    assert link.receive() == []
    agent.hang_up()
    with pytest.raises(ConnectionLost):
        link.receive()
    assert link.try_connect()
    agent.say(NewEpoch(2))
    link.wait_readable(TIMEOUT_S)
    assert link.receive() == [NewEpoch(2)]


def test_an_agent_that_reads_nothing_costs_bounded_memory_and_no_time(
    agent: ScriptedAgent, link: AgentConnection
) -> None:
    agent.accept()
    sizes: list[int] = []

    def talk_on() -> None:
        while True:
            sizes.append(len(link._outbox))
            link.send(SaveFailed(1, "x" * 10_000))

    with pytest.raises(ConnectionLost, match="takes no more"):
        talk_on()
    assert max(sizes) <= MAX_OUTBOX_BYTES
    assert not link.connected


def test_a_droppable_message_is_dropped_while_others_are_queued(agent: ScriptedAgent, link: AgentConnection) -> None:
    connection = agent.connection
    kept = 0
    while not link._outbox:
        link.send(SaveFailed(1, "x" * 10_000))
        kept += 1
    link.send(MetricsReport({}), droppable=True)
    link.send(SaveFailed(1, "kept"))
    decoder, messages = Decoder(from_worker), list[FromWorker]()
    while len(messages) <= kept:
        messages.extend(decoder.feed(connection.recv(1 << 20)))
        link.flush()
    assert {type(message) for message in messages} == {SaveFailed}
    assert len(messages) == kept + 1


def test_a_disconnected_link_reports_that_and_drops_droppable_messages(agent: ScriptedAgent) -> None:
    link = AgentConnection("gpt", SETTINGS)
    for use in (link.flush, link.receive, lambda: link.wait_readable(1.0), lambda: link.send(Leave(True, 1))):
        with pytest.raises(ConnectionLost, match="not connected"):
            use()
    link.send(MetricsReport({}), droppable=True)
    link.kill_agent()
    link.close()


def test_no_agent_is_started_while_another_process_holds_the_claim(agent: ScriptedAgent) -> None:
    link = AgentConnection("gpt", SETTINGS)
    assert not link.try_connect()
    assert link.starts == 0
    agent.listen()
    assert link.try_connect()
    link.close()


def test_an_agent_that_never_answers_is_an_error_with_its_log(agent: ScriptedAgent) -> None:
    agent.folder.log.write_text("the certificate has expired\n")
    ticks = count(0.0, 5.0)
    link = AgentConnection("gpt", SETTINGS, clock=lambda: next(ticks))
    with pytest.raises(AgentError, match="the certificate has expired"):
        link.wait_connected(300.0)
    link.close()


def test_a_closed_link_releases_its_descriptors_and_can_be_closed_twice(agent: ScriptedAgent) -> None:
    agent.listen()
    before = len(os.listdir("/proc/self/fd"))
    link = AgentConnection("gpt", SETTINGS)
    assert link.try_connect()
    link.close()
    link.close()
    assert len(os.listdir("/proc/self/fd")) == before


# -- starting one --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("runtime_dir")
def test_an_agent_that_cannot_be_started_at_all_is_an_agent_error(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RuntimeFolder.of("gpt", SETTINGS)
    claim = folder.claim()
    assert claim is not None
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(AgentError, match="could not be started with /nonexistent/python"):
        start_agent(folder, "gpt", SETTINGS, claim, "")
    os.close(claim)


@pytest.mark.usefixtures("runtime_dir")
def test_an_error_shows_only_the_end_of_a_log() -> None:
    folder = RuntimeFolder.of("gpt", SETTINGS)
    assert log_tail(folder) == "it left no log"
    folder.log.write_bytes(b"")
    assert log_tail(folder) == "its log is empty"
    folder.log.write_bytes(b"x" * 10_000 + b"\xff the end\n")
    assert log_tail(folder).endswith("the end")
    assert len(log_tail(folder)) <= LOG_TAIL_CHARACTERS


def test_a_stopped_agent_with_a_full_backlog_blocks_no_worker(agent: ScriptedAgent) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(agent.folder.socket))
    listener.listen(0)
    waiting = []
    link = AgentConnection("gpt", SETTINGS)
    try:
        for _ in range(4):
            other = socket.socket(socket.AF_UNIX)
            other.setblocking(False)
            waiting.append(other)
            with contextlib.suppress(BlockingIOError):
                other.connect(str(agent.folder.socket))
        assert not link.try_connect()
    finally:
        for each in (*waiting, listener, link):
            each.close()


def test_other_output_of_an_agent_is_not_its_reason(runtime_dir: Path) -> None:
    """A sitecustomize module of the machine may print to standard output."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    link = AgentConnection("gpt", SETTINGS)
    try:
        link._reasons = os.fdopen(reading, "rb")
        os.write(writing, b"welcome to this cluster\n")
        link._reap()
        assert link._problem == ""
        os.write(writing, b"welcome\nits agent cannot serve: No space left on device\n")
        link._reap()
        assert link._problem == "its agent cannot serve: No space left on device"
    finally:
        os.close(writing)
        link.close()
