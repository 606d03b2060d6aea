"""A port that passes each connection to its line."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from instep.errors import EtcdError
from instep.etcd_server.health import wait_until
from instep.etcd_server.ports import free_ports
from instep.tasks import Background
from instep.testing._line import Line
from instep.testing._pair import Side
from instep.testing._proxy_thread import ProxyThread

_BACKLOG = 128
_LISTEN_TIMEOUT_S = 5.0
_PORT_TRIES = 5
_PAUSE_S = 0.2

Route = Callable[[int], Line | None]
"""The line for a connection from this source port; None resets it."""


class Listener:
    """Listens on `host` and `port` (0: a free one) from its creation. Keeps the port number while it refuses."""

    def __init__(self, thread: ProxyThread, host: str, port: int, route: Route) -> None:
        self._thread = thread
        self._host = host
        self._route = route
        self._socket: socket.socket | None = None
        self._arriving = Background("a connection to a proxy")
        self._closed = False
        self.port = port
        if port:
            self.listen()
        else:
            self._listen_anywhere()

    def listen(self) -> None:
        """Accepts connections. Raises EtcdError if another process holds the port for 5 s."""
        if self._socket is not None or self._closed:
            return
        # Another process may be probing the port at this moment.
        if not wait_until(self._listens, timeout_s=_LISTEN_TIMEOUT_S):
            raise EtcdError(f"port {self.port} on {self._host} is taken: a proxy cannot listen there")

    def refuse(self) -> None:
        """Refuses new connections. Existing ones are not affected."""
        if self._socket is not None:
            self._thread.call(self._stop, self._socket)
            self._socket = None

    def close(self) -> bool:
        """Refuses permanently. False if it was closed already."""
        if self._closed:
            return False
        self.refuse()
        self._closed = True
        return True

    def _listen_anywhere(self) -> None:
        for _ in range(_PORT_TRIES):
            (self.port,) = free_ports(1, self._host)
            if self._listens():
                return
        raise EtcdError(f"no port on {self._host} for a proxy after {_PORT_TRIES} tries")

    def _listens(self) -> bool:
        plain = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET, socket.SOCK_STREAM)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            plain.bind((self._host, self.port))
            plain.listen(_BACKLOG)
        except OSError:
            plain.close()
            return False
        plain.setblocking(False)
        self._socket = plain
        self._thread.call(self._thread.loop.add_reader, plain, self._accept, plain)
        return True

    # -- in the proxy's thread. Not asyncio's server, which loses sockets in the backlog when it is closed ----------

    def _stop(self, plain: socket.socket) -> None:
        self._thread.loop.remove_reader(plain)
        plain.close()

    def _accept(self, plain: socket.socket) -> None:
        try:
            arrived, _ = plain.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # closed already
        except OSError:  # no file descriptor left: an immediate retry would busy-loop
            self._thread.loop.remove_reader(plain)
            self._thread.loop.call_later(_PAUSE_S, self._resume, plain)
            return
        self._arriving.start(self._take(arrived))

    def _resume(self, plain: socket.socket) -> None:
        if plain.fileno() >= 0:
            self._thread.loop.add_reader(plain, self._accept, plain)

    async def _take(self, arrived: socket.socket) -> None:
        try:
            arrived.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(lambda: Side("up", self._made), arrived)
        except OSError:
            arrived.close()

    def _made(self, client: Side) -> None:
        assert client.transport is not None
        address = client.transport.get_extra_info("peername")  # None if it is closed already
        line = self._route(address[1]) if address is not None else None
        if line is None:
            client.reset()
        else:
            line.serve(client)
