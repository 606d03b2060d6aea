"""The agent's socket: accepts connections from processes of this user only."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from pathlib import Path
from typing import Final

from instep.agent.connection import OnEnd, OnMessage, WorkerConnection, refuse
from instep.system_errors import OUT_OF_RESOURCES, explained

log = logging.getLogger("instep")

BACKLOG = 256
PAUSE_S: Final = 0.5
"""Pause after a connection could not be accepted: an immediate retry would only use CPU."""
WARN_EVERY_S: Final = 60.0


class Server:
    """Listens on a unix socket in a private folder and creates a `WorkerConnection` for each process.

    One file descriptor is reserved: when the process has none left, each new connection gets the reason.
    """

    def __init__(self, path: Path, on_message: OnMessage, on_died: OnEnd) -> None:
        self._path = path
        self._on_message = on_message
        self._on_died = on_died
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._spare = _spare_descriptor()
        self._warn_at = 0.0
        self.connections: set[WorkerConnection] = set()
        self.problem: str | None = None
        """Why the last failed connection could not be accepted; None if there was none."""

    def start(self) -> None:
        """Replaces the socket of a dead agent: this agent holds the folder's lock."""
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
        """Binds the socket again if it was removed: later workers must find it."""
        if self._listener.fileno() >= 0 and not self._path.exists() and self._path.parent.exists():
            log.warning("the socket %s was removed: creating it again", self._path)
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.start()

    def stop_accepting(self) -> None:
        """Removes the path first: a worker that starts now can start another agent as soon as this one has ended."""
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
            connection = WorkerConnection(sock, self._on_message, self._forget, self._pause)
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
        """Accepts no connection for a moment. Logs the reason at most once a minute."""
        self.problem = f"the agent of this node has refused a process: {explained(error)}"
        if time.monotonic() >= self._warn_at:
            self._warn_at = time.monotonic() + WARN_EVERY_S
            log.error("%s", self.problem)
        loop, listener = asyncio.get_running_loop(), self._listener
        loop.remove_reader(listener)
        loop.call_later(PAUSE_S, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if listener is self._listener and listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener, self._accept)

    def _refuse_next(self, error: OSError) -> None:
        """Accepts all waiting connections, one after the other, with the reserved descriptor, and sends the reason."""
        self._free_spare()
        with contextlib.suppress(OSError):  # none waits, or another thread has taken the descriptor
            while True:
                sock, _ = self._listener.accept()
                refuse(sock, error)
        with contextlib.suppress(OSError):
            self._spare = _spare_descriptor()

    def _free_spare(self) -> None:
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _forget(self, connection: WorkerConnection) -> None:
        self.connections.discard(connection)
        self._on_died(connection)


def _spare_descriptor() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
