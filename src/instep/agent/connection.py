"""The agent's end of a worker's socket: whole messages in, messages out, and a watch on the worker's pid."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from functools import partial
from typing import Final

from instep.agent.ending import how_it_ended
from instep.system_errors import OUT_OF_RESOURCES, explained
from instep.wire.frames import Decoder, Words, framed, from_worker, receive_with_descriptor
from instep.wire.messages import Failure, FromAgent, FromWorker

log = logging.getLogger("instep")

MAX_OUTBOX_BYTES: Final = 4 * 1024 * 1024
READ_BYTES: Final = 65536


OnMessage = Callable[["WorkerConnection", FromWorker], None]
OnEnd = Callable[["WorkerConnection"], None]


def refusal(error: OSError) -> Failure:
    return Failure("agent", f"the agent of this node cannot accept this process: {explained(error)}")


def refuse(sock: socket.socket, error: OSError) -> None:
    """Sends the reason why its process cannot be served, and closes the socket."""
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(framed(refusal(error)), socket.MSG_NOSIGNAL)


class WorkerConnection:
    """Calls `on_message` for each message, and `on_died` when the worker's process has ended.

    It detects the end by the pid, not by the socket: forked children hold the socket open, and a worker that closes it
    may connect again. Limit: if the pid is not visible (another pid namespace), the end of the socket counts. Raises
    OSError if this process has no file descriptor left for the watch.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: OnMessage,
        on_died: OnEnd,
        on_refused: Callable[[OSError], None] = lambda error: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._on_message = on_message
        self._on_died = on_died
        self._on_refused = on_refused
        self._decoder = Decoder(from_worker)
        self._outbox = bytearray()
        self._uncounted = 0
        self._closed = False
        self._deaf = False
        self.words: Words | None = None
        self.ending: str | None = None
        """How its process ended, if known."""
        self.pid, self.uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        sock.setblocking(False)
        self._pidfd = self._watch_pid()
        self._loop.add_reader(sock, self._readable)

    def __repr__(self) -> str:
        return f"WorkerConnection(pid {self.pid}{', closed' if self._closed else ''})"

    @property
    def closed(self) -> bool:
        """Whether this end is closed: the worker died, left, or was replaced."""
        return self._closed

    def send(self, message: FromAgent) -> None:
        """Queues the message. The shared word `messages` rises when the worker has something to read."""
        if self._closed or self._deaf:
            return
        self._outbox += framed(message)
        self._uncounted += 1
        if len(self._outbox) > MAX_OUTBOX_BYTES:
            log.error("worker %d does not read its messages: connection dropped", self.pid)
            self.hang_up()
            return
        self._writable()

    def close(self) -> None:
        """Closes without calling `on_died`."""
        if self._closed:
            return
        self._closed = True
        self._stop_listening()
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        if self.words is not None:
            self.words.close()
            self.words = None

    def _watch_pid(self) -> int:
        if self.pid <= 0:
            return -1
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._loop.call_soon(self._died)
            return -1
        except OSError as error:
            if error.errno in OUT_OF_RESOURCES:
                raise
            log.warning("pid %d cannot be watched (%s): only its socket is watched", self.pid, error)
            return -1
        self._loop.add_reader(pidfd, self._died)
        return pidfd

    def _died(self) -> None:
        if not self._closed:
            self._readable()  # first its last messages, such as a clean leave
        if not self._closed:
            self.ending = how_it_ended(self.pid, self._pidfd)
            self.close()
            self._on_died(self)

    def hang_up(self) -> None:
        """Closes the socket. The process may live and connect again, so its pid is still watched."""
        self._stop_listening()
        if self._pidfd < 0:
            self._loop.call_soon(self._died)

    def _stop_listening(self) -> None:
        if self._deaf:
            return
        self._deaf = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    def _readable(self) -> None:
        while not self._deaf:
            try:
                data, descriptor = receive_with_descriptor(self._socket, READ_BYTES)
                if descriptor is not None:
                    self._map(descriptor)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    self._refuse(error)
                    return
                data, descriptor = b"", None
            if not data:
                self.hang_up()
                return
            self.guarded(partial(self._take, data))

    def _take(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            if not self._closed:
                self._on_message(self, message)

    def guarded(self, act: Callable[[], None]) -> None:
        """Acts on a message of the worker. One that cannot be read ends the connection: the worker connects again and
        repeats it, and no other worker is affected."""
        try:
            act()
        except ValueError as error:
            log.error("worker %d sent an unreadable message and must reconnect: %s", self.pid, error)
            self.hang_up()

    def _refuse(self, error: OSError) -> None:
        """The message came with the descriptor of the shared words, and this process has none left for it."""
        self.send(refusal(error))
        self.close()
        self._on_refused(error)
        self._on_died(self)

    def _map(self, descriptor: int) -> None:
        """Raises OSError when this process has no descriptor left for it."""
        try:
            if self.words is None:
                self.words = Words(descriptor)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
                raise
            log.error("the shared words of worker %d cannot be mapped: %s", self.pid, error)
        finally:
            os.close(descriptor)

    def _writable(self) -> None:
        try:
            while self._outbox:
                sent = self._socket.send(self._outbox, socket.MSG_NOSIGNAL)
                del self._outbox[:sent]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._writable)
            if self.words is not None and self._uncounted:
                self.words.count_message()  # the rest of a large message goes when the worker has read the first part
            return
        except OSError:
            self._outbox.clear()  # the reader notices the end
        self._loop.remove_writer(self._socket)
        if self.words is not None and self._uncounted:
            self._uncounted = 0
            self.words.count_message()


class DisconnectedWorker:
    """The place of a worker that has not connected to this agent yet. What is sent to it is dropped: the worker gets
    the current state when it connects.

    Promise: `on_died` is called when its process ends, even if that was before this object existed.
    """

    words: Words | None = None
    ending: str | None = None
    """How its process ended, if known."""

    def __init__(self, pid: int, on_died: Callable[[DisconnectedWorker], None]) -> None:
        self.pid = pid
        self._on_died = on_died
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        self._closed = False
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            self._loop.call_soon(self._died)
        else:
            self._loop.add_reader(self._pidfd, self._died)

    def __repr__(self) -> str:
        return f"DisconnectedWorker(pid {self.pid}{', closed' if self._closed else ''})"

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, message: FromAgent) -> None:
        """Drops the message."""

    def close(self) -> None:
        self._closed = True
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _died(self) -> None:
        if not self._closed:
            self.ending = how_it_ended(self.pid, self._pidfd)
            self.close()
            self._on_died(self)
