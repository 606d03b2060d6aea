"""Messages that workers send before their agent knows the run's state are kept, within a bound, and harm no other
worker."""

from __future__ import annotations

import socket
import struct

from instep.agent.worker_sessions import MAX_EARLY
from instep.names import INCARNATION_LENGTH
from instep.testing import EtcdServer
from instep.wire.frames import create_words, framed
from instep.wire.messages import AtGate, Hello
from run.harness import TrainingRun, wait_for


def hello(rank: int) -> bytes:
    about = {"host": "here", "pid": 1, "incarnation": f"{rank:0{INCARNATION_LENGTH}d}"}
    return framed(Hello(rank=rank, world_size=3, **about))


def nonsense_of(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


def test_invalid_and_excessive_early_messages_cost_only_their_own_connection(
    fragile_training: TrainingRun,
) -> None:
    training = fragile_training
    assert isinstance(training.server, EtcdServer)
    training.server.pause()
    good = training.start(0, 1)
    (path,) = [wait_for(lambda: list(training.node("a").rglob("agent.sock")), "an agent")[0]]
    agent = training.agent_pid()
    words, descriptor = create_words()
    nonsense, flood = (socket.socket(socket.AF_UNIX) for _ in range(2))
    for rank, connection in ((1, nonsense), (2, flood)):
        connection.settimeout(20)
        connection.connect(str(path))
        socket.send_fds(connection, [hello(rank)], [descriptor])
    nonsense.sendall(nonsense_of(b'{"t":"leave"}'))  # what it needs is missing
    flood.sendall(b"".join(framed(AtGate(n, "", 0, n)) for n in range(MAX_EARLY + 50)))
    wait_for(lambda: _is_closed(flood), "the flood's connection to end")
    training.server.resume()
    wait_for(lambda: _is_closed(nonsense), "the connection of nonsense to end")
    good.wait_said("config")
    assert training.agent_pid() == agent
    training.stop(good)
    words.close()
    for connection in (nonsense, flood):
        connection.close()


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(65536) == b""
    except ConnectionResetError:
        return True
