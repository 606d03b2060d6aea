"""A plain TCP server for the tests of the proxy: it answers each line and records what it received."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self

LIMIT_S = 10.0


class PlainServer:
    """Answers "echo x" for each line "x", in a thread; `received` are the lines, `ends` how connections ended."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self.received: list[str] = []
        self.ends: list[str] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # Not a buffered writer: closed after a reset it would try to flush, and raise once more.
        with connection, connection.makefile("rb") as stream:
            try:
                for line in stream:
                    self.received.append(line.decode().strip())
                    connection.sendall(b"echo " + line)
                self.ends.append("closed")
            except ConnectionError:
                self.ends.append("reset")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class PlainClient:
    """One connection to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        self._stream = self._socket.makefile("rb")

    def say(self, line: str) -> None:
        self._socket.sendall(line.encode() + b"\n")

    def hear(self) -> str:
        """The next line; empty when the server has closed."""
        return self._stream.readline().decode().strip()

    def ask(self, line: str) -> str:
        self.say(line)
        return self.hear()

    def silent(self, for_s: float = 0.1) -> bool:
        """Whether nothing arrives for this long."""
        self._socket.settimeout(for_s)
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(LIMIT_S)
        return False

    def say_no_more(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._stream.close()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
