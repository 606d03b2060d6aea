"""A TCP proxy for tests that cuts, holds, delays or loses data on demand."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from instep.etcd_server.ports import check_port
from instep.testing._line import Line
from instep.testing._link import Link
from instep.testing._listener import Listener
from instep.testing._proxy_thread import ProxyThread

_HOST = "127.0.0.1"


class Proxy(Link):
    """A TCP proxy on loopback in front of `target_host:target_port`, for a `with` block or until `close()`.

    It listens from its creation on `port`, or on a free port, of `host`, an address of loopback. It does not interpret
    the data. The server need not run: the proxy opens a connection to it for each client. See `Link` for the faults and
    their limits.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        host: str = _HOST,
        port: int = 0,
        thread: ProxyThread | None = None,
    ) -> None:
        check_port(target_port, 1)
        check_port(port)
        self._owned = ProxyThread("instep-proxy") if thread is None else None
        thread = thread or self._owned
        assert thread is not None
        line = Line(f"to {target_host}:{target_port}", (target_host, target_port))
        super().__init__(thread, line)
        self._host = host
        self._listener = Listener(thread, host, port, lambda _: line)

    @property
    def port(self) -> int:
        """The port for clients; the same across cuts."""
        return self._listener.port

    @property
    def endpoint(self) -> str:
        """The address and port for clients."""
        return f"{self._host}:{self.port}"

    def cut(self) -> None:
        """Resets all connections and refuses new ones."""
        self._listener.refuse()
        super().cut()

    def heal(self) -> None:
        """Ends all faults. Data that was held back passes."""
        super().heal()
        self._listener.listen()

    def close(self) -> None:
        """Resets all connections and refuses new ones permanently."""
        if self._listener.close():
            super().cut()
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
