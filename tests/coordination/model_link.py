"""The stream between a worker and its agent, in memory: a test can delay or cut it; it keeps the order."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from instep.errors import AgentError
from instep.wire.frames import Decoder, Words, create_words, framed, from_agent, from_worker
from instep.wire.messages import FromAgent, FromWorker
from instep.worker.agent_connection import ConnectionLost

if TYPE_CHECKING:
    from model_cluster import Host

WAIT_S = 0.2
DEATH = b""
"""Marks in the stream to the agent where the end of the worker's process was noticed."""


class Delays:
    """What delays the streams of a worker; it outlives each connection."""

    def __init__(self) -> None:
        self.up_held = False
        self.down_held = False


class ModelConnection:
    """The agent's end, used as a WorkerConnection. `up` and `down` are the messages under way."""

    def __init__(self, host: Host, words: Words, delays: Delays) -> None:
        self.pid = 1
        self.ending: str | None = None
        self.words: Words | None = words
        self.closed = False
        self.cut = False
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self._words = words
        self._host = host
        self._node = host.node
        self._delays = delays
        self._decoder = Decoder(from_worker)
        self.arrived: list[bytes] = []

    # -- for the node -----------------------------------------------------------------------------------------------

    def send(self, message: FromAgent) -> None:
        if self.closed or self.cut:
            return
        self.down.append(framed(message))
        if not self._delays.down_held:
            self.pump_down()

    def close(self) -> None:
        """Closes it: the worker can still read what was sent; nothing more is received from it."""
        self.closed = True
        self.words = None

    # -- for the worker ---------------------------------------------------------------------------------------------

    def say(self, data: bytes) -> None:
        self.up.append(data)
        if not self._delays.up_held:
            self._host.loop.call_soon(self.pump_up)

    def pump_down(self, count: int | None = None) -> None:
        while self.down and (count is None or count > 0):
            self.arrived.append(self.down.popleft())
            self._words.count_message()
            count = None if count is None else count - 1

    def pump_up(self, count: int | None = None) -> None:
        """In the loop, as the agent reads its socket."""
        while self.up and not self.closed and (count is None or count > 0):
            data = self.up.popleft()
            count = None if count is None else count - 1
            node = self._node
            assert node is not None
            if data == DEATH:
                self.close()
                node.on_died(self)  # type: ignore[arg-type]
                return
            for message in self._decoder.feed(data):
                node.on_message(self, message)  # type: ignore[arg-type]

    def hang_up(self) -> None:
        """The worker has closed its end: its messages are still read, but it receives nothing more."""
        self.cut = True
        self.arrived.clear()
        self.down.clear()

    def break_off(self, *, keep_down: bool) -> None:
        """The agent has died: nothing more is read from the worker, and messages not yet in the socket are lost."""
        self.up.clear()
        if keep_down:
            self.pump_down()
        self.down.clear()
        self.close()


class ModelLink:
    """The worker's end, used as an AgentConnection."""

    def __init__(self, host: Host, delays: Delays) -> None:
        self.words, descriptor = create_words()
        os.close(descriptor)
        self.connection: ModelConnection | None = None
        self.node = ""
        self.starts = 0
        self.heard_at = 0.0
        self.made: list[ModelConnection] = []
        self._host = host
        self._delays = delays
        self._decoder = Decoder(from_agent)

    @property
    def connected(self) -> bool:
        return self.connection is not None

    def try_connect(self) -> bool:
        if self.connection is None and self._host.listens():
            self.connection = ModelConnection(self._host, self.words, self._delays)
            self._host.connections.append(self.connection)
            self.made.append(self.connection)
            self._decoder = Decoder(from_agent)
        return self.connection is not None

    def wait_connected(self, timeout_s: float) -> None:
        if not self.try_connect():
            self._host.loop.advance(max(timeout_s, WAIT_S))
            raise AgentError("the node's agent did not answer")

    def wait_message(self, kind: type[FromAgent], timeout_s: float) -> bool:
        left_s = timeout_s
        while left_s > 0:
            self._host.loop.advance(WAIT_S)
            left_s -= WAIT_S
            if any(isinstance(message, kind) for message in self.receive()):
                return True
        return False

    def introduce(self, hello: FromWorker) -> None:
        self.send(hello)

    def send(self, message: FromWorker, *, droppable: bool = False) -> None:
        if self.connection is None or self.connection.closed:
            if droppable:
                return
            self.drop()
            raise ConnectionLost("not connected")
        self.connection.say(framed(message))

    def flush(self) -> None:
        if self.connection is None:
            raise ConnectionLost("not connected")

    def receive(self) -> list[FromAgent]:
        connection = self.connection
        if connection is None:
            raise ConnectionLost("not connected")
        data, connection.arrived = connection.arrived, []
        messages = [message for part in data for message in self._decoder.feed(part)]
        if connection.closed and not connection.down:
            self.drop()
            if not messages:
                raise ConnectionLost("the agent closed the connection")
        return messages

    def drop(self) -> None:
        if self.connection is not None:
            self.connection.hang_up()
        self.connection = None

    def kill_agent(self) -> None:
        if self.connection is not None and self.connection in self._host.connections:
            self._host.crash(keep_down=False)
        self.drop()

    def die(self) -> None:
        """The process has ended, which an agent learns from the pid, independent of the sockets."""
        self.drop()
        for connection in self.made:
            if not connection.closed:
                connection.say(DEATH)

    def reset_restart_delay(self) -> None:
        pass

    def close(self) -> None:
        self.drop()
