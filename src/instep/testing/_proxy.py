"""A TCP proxy for tests: what goes through it is cut, held, delayed or lost on purpose."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from instep.etcd_server.ports import check_port
from instep.testing._line import Line
from instep.testing._link import Link
from instep.testing._listener import Listener
from instep.testing._loop import LoopThread

_HOST = "127.0.0.1"


class Proxy(Link):
    """A TCP proxy on loopback before `target_host:target_port`, for a `with` block or until `close()`.

    It listens from the start, on `port` or on a free one of `host`, any address of loopback, and knows nothing of
    what it passes on. The server need not run: a new connection to it is made for each. See `Link` for the faults and
    their limits.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        host: str = _HOST,
        port: int = 0,
        thread: LoopThread | None = None,
    ) -> None:
        check_port(target_port, 1)
        check_port(port)
        self._owned = LoopThread("instep-proxy") if thread is None else None
        thread = thread or self._owned
        assert thread is not None
        line = Line(f"to {target_host}:{target_port}", (target_host, target_port))
        super().__init__(thread, line)
        self._host = host
        self._listener = Listener(thread, host, port, lambda _: line)

    @property
    def port(self) -> int:
        """The port at which clients reach it; the same over cuts."""
        return self._listener.port

    @property
    def endpoint(self) -> str:
        """Where clients reach it: address and port."""
        return f"{self._host}:{self.port}"

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._listener.refuse()
        super().cut()

    def heal(self) -> None:
        """End all faults; what was held back goes on."""
        super().heal()
        self._listener.listen()

    def close(self) -> None:
        """Reset what is open and refuse what comes; for good."""
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
