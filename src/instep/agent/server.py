"""The agent's socket: takes connections of processes of our own user, nobody else's."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

from instep.agent.connection import Connection, OnEnd, OnMessage

log = logging.getLogger("instep")

BACKLOG = 256


class Server:
    """Listens on a unix socket in a private folder and hands each connection its callbacks."""

    def __init__(self, path: Path, on_message: OnMessage, on_died: OnEnd) -> None:
        self._path = path
        self._on_message = on_message
        self._on_died = on_died
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connections: set[Connection] = set()

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

    def close(self) -> None:
        self.stop_accepting()
        for connection in list(self.connections):
            connection.close()
        self.connections.clear()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:
            log.warning("a connection could not be accepted: %s", error)
            return
        connection = Connection(sock, self._on_message, self._forget)
        if connection.uid != os.getuid():
            log.error("a process of user %d tried to connect", connection.uid)
            connection.close()
            return
        self.connections.add(connection)

    def _forget(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._on_died(connection)
