"""The agent's end of a worker's socket."""

from __future__ import annotations

import asyncio
import os
import socket

from instep.agent.connection import WorkerConnection
from instep.wire.frames import Decoder, create_words, from_agent
from instep.wire.messages import FromAgent, Note


def test_a_message_larger_than_the_socket_is_announced_while_its_rest_waits() -> None:
    """Otherwise the worker, which looks at a word, would read each part only at its look of once a second."""
    note = Note(20, "x" * 1_000_000)
    heard: list[FromAgent] = []

    async def main() -> None:
        ours, theirs = socket.socketpair()
        connection = WorkerConnection(ours, lambda *_: None, lambda _: None)
        connection.words, descriptor = create_words()
        os.close(descriptor)
        with theirs:
            connection.send(note)
            assert connection.words.messages == 1
            theirs.setblocking(False)
            decoder = Decoder(from_agent)
            async with asyncio.timeout(10):
                while not heard:
                    heard.extend(decoder.feed(await asyncio.get_running_loop().sock_recv(theirs, 65536)))
            assert connection.words.messages > 1
            connection.close()

    asyncio.run(main())
    assert heard == [note]
