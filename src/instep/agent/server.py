"""The agent's socket: takes connections of processes of our own user, nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from pathlib import Path
from typing import Final

from instep.agent.connection import Connection, OnEnd, OnMessage, refuse
from instep.system_errors import OUT_OF_RESOURCES, explained

log = logging.getLogger("instep")

BACKLOG = 256
PAUSE_S: Final = 0.5
"""How long no connection is taken after one could not be: trying again at once would only take a core."""
COMPLAIN_S: Final = 60.0


class Server:
    """Listens on a unix socket in a private folder and hands each connection its callbacks.

    While the process has no descriptor left, each that connects hears so at once: one descriptor is held for that.
    """

    def __init__(self, path: Path, on_message: OnMessage, on_died: OnEnd) -> None:
        self._path = path
        self._on_message = on_message
        self._on_died = on_died
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._spare = _spare_descriptor()
        self._complain_at = 0.0
        self.connections: set[Connection] = set()
        self.problem: str | None = None
        """Why a process could not be taken, the last time that one could not; None for never."""

    def start(self) -> None:
        """Takes the path over from an agent that died: the folder's lock says that there is no other."""
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._listener.bind(str(self._path))
        finally:
            os.umask(before)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def stay_reachable(self) -> None:
        """Binds anew when somebody has removed the socket: workers that come later must find it."""
        if self._listener.fileno() >= 0 and not self._path.exists() and self._path.parent.exists():
            log.warning("the socket %s was removed: making it again", self._path)
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.start()

    def stop_accepting(self) -> None:
        """The path goes first, so that a worker which comes now starts another agent as soon as this one has ended."""
        if self._listener.fileno() < 0:
            return
        self._path.unlink(missing_ok=True)
        asyncio.get_running_loop().remove_reader(self._listener)
        self._listener.close()
        self._free_spare()

    def close(self) -> None:
        self.stop_accepting()
        for connection in list(self.connections):
            connection.close()
        self.connections.clear()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # the process that connected has closed it
        except OSError as error:
            self._pause(error)
            if error.errno in OUT_OF_RESOURCES:
                self._refuse_next(error)
            return
        try:
            connection = Connection(sock, self._on_message, self._forget, self._pause)
        except OSError as error:
            self._pause(error)
            refuse(sock, error)
            return
        if connection.uid != os.getuid():
            log.error("a process of user %d tried to connect", connection.uid)
            connection.close()
            return
        self.connections.add(connection)

    def _pause(self, error: OSError) -> None:
        """Takes no connection for a moment; says so once a minute."""
        self.problem = f"the agent of this node has refused a process: {explained(error)}"
        if time.monotonic() >= self._complain_at:
            self._complain_at = time.monotonic() + COMPLAIN_S
            log.error("%s", self.problem)
        loop, listener = asyncio.get_running_loop(), self._listener
        loop.remove_reader(listener)
        loop.call_later(PAUSE_S, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener is self._listener and listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept)

    def _refuse_next(self, error: OSError) -> None:
        """Takes all that wait, one after the other, with the spare descriptor, and says why they cannot be served."""
        self._free_spare()
        with contextlib.suppress(OSError):  # no process waits any more, or another thread has taken the descriptor
            while True:
                sock, _ = self._listener.accept()
                refuse(sock, error)
        with contextlib.suppress(OSError):
            self._spare = _spare_descriptor()

    def _free_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._on_died(connection)


def _spare_descriptor() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
