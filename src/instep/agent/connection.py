"""The agent's end of one worker's socket: whole messages in, messages out, the worker's pid watched."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from instep.wire import Decoder, Message, WireError, Words, encode, receive_with_descriptor

log = logging.getLogger("instep")

MAX_OUTBOX_BYTES: Final = 4 * 1024 * 1024
READ_BYTES: Final = 65536

OnMessage = Callable[["Connection", Message], None]
OnEnd = Callable[["Connection"], None]


class Connection:
    """Calls `on_message` for each message and one of `on_died`, `on_closed` at the end.

    A worker's death is learned from its pid, not from the socket: forked children hold the socket open. Limit: where
    the worker's pid cannot be seen (another pid namespace) only the end of the socket tells.
    """

    def __init__(self, sock: socket.socket, on_message: OnMessage, on_died: OnEnd, on_closed: OnEnd) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._on_message = on_message
        self._on_died = on_died
        self._on_closed = on_closed
        self._decoder = Decoder()
        self._outbox = bytearray()
        self._mail_waiting = 0
        self._closed = False
        self.words: Words | None = None
        self.pid, self.uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        sock.setblocking(False)
        self._pidfd = self._watch_pid()
        self._loop.add_reader(sock, self._readable)

    def __repr__(self) -> str:
        return f"Connection(pid {self.pid}{', closed' if self._closed else ''})"

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, message: Message) -> None:
        """Queues the message; the worker's mail word rises when it is in the socket."""
        if self._closed:
            return
        self._outbox += encode(message)
        self._mail_waiting += 1
        if len(self._outbox) > MAX_OUTBOX_BYTES:
            log.error("worker %d takes no messages: its connection is dropped", self.pid)
            self._end(self._on_closed)
            return
        self._writable()

    def close(self) -> None:
        """Without a call to anybody."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._socket.close()
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
            log.warning("pid %d cannot be watched (%s): only its socket is", self.pid, error)
            return -1
        self._loop.add_reader(pidfd, self._died)
        return pidfd

    def _died(self) -> None:
        if not self._closed:
            self._read_all()  # what it said last, such as that it left cleanly, comes first
        if not self._closed:
            self._end(self._on_died)

    def _readable(self) -> None:
        self._read_all()

    def _read_all(self) -> None:
        while not self._closed:
            try:
                data, descriptor = receive_with_descriptor(self._socket, READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data, descriptor = b"", None
            if descriptor is not None:
                self._map(descriptor)
            if not data:
                self._end(self._on_closed)
                return
            try:
                for message in self._decoder.feed(data):
                    if not self._closed:
                        self._on_message(self, message)
            except (WireError, KeyError, TypeError, ValueError) as error:
                log.error("worker %d said what cannot be understood (%r)", self.pid, error)
                self._end(self._on_closed)

    def _map(self, descriptor: int) -> None:
        try:
            if self.words is None:
                self.words = Words(descriptor)
        except (OSError, ValueError) as error:
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
            return
        except OSError:
            self._outbox.clear()  # the reader learns of the end
        self._loop.remove_writer(self._socket)
        if self.words is not None and self._mail_waiting:
            self._mail_waiting = 0
            self.words.count_mail()

    def _end(self, tell: OnEnd) -> None:
        self.close()
        tell(self)
