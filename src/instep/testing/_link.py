"""Connections from clients to a server, with faults as methods."""

from __future__ import annotations

import math
from typing import Literal

from instep.errors import SettingsError
from instep.etcd_server.ports import is_whole
from instep.testing._faults import Loss
from instep.testing._flow import Direction
from instep.testing._line import Line, LinkStatistics
from instep.testing._proxy_thread import ProxyThread

Directions = Literal["up", "down", "both"]
_WAYS: dict[str, tuple[Direction, ...]] = {"up": ("up",), "down": ("down",), "both": ("up", "down")}


class Link:
    """Connections from clients to one server through a proxy. "up" is to the server, "down" is to the client.

    A fault is in effect when its method returns, for existing and new connections, until `heal()`. Faults of different
    kinds add up. Bytes that left the proxy before still arrive. The methods can be called from any thread, and wait at
    most 10 s.

    Limit: the kernel accepts connections, so a fault shows as silence or as a reset, never as a lost SYN. A client of a
    stopped server gets a reset, not a refusal. The proxy runs in this process and stops while other code holds the GIL.
    It has at most 1000 connections, and holds 1 MiB for each direction of each.
    """

    def __init__(self, thread: ProxyThread, line: Line) -> None:
        self._thread = thread
        self._line = line

    @property
    def name(self) -> str:
        """The target, or source and target."""
        return self._line.name

    def cut(self) -> None:
        """Resets all connections, including new ones."""
        self._thread.call(self._line.cut)

    def reset(self) -> None:
        """Resets the existing connections. New ones are served."""
        self._thread.call(self._line.reset_all)

    def black_hole(self, ways: Directions = "both") -> None:
        """Accepts connections but passes nothing in these directions: no byte, no end, no reset.

        Nothing is lost: data waits (in the kernel, so a large sender blocks) and passes after `heal()`, unless the
        connection has died meanwhile. TCP behaves like that when a network recovers.
        """
        self._thread.call(self._line.hold, _both(ways))

    def delay(self, delay_s: float, jitter_s: float = 0.0, ways: Directions = "both") -> None:
        """Delays data by `delay_s`, and up to `jitter_s` more at random. Keeps the order of bytes."""
        if not all(math.isfinite(seconds) and seconds >= 0 for seconds in (delay_s, jitter_s)):
            raise SettingsError(
                f"a delay must be finite and at least 0 s, not {delay_s:g} s with {jitter_s:g} s of jitter"
            )
        self._thread.call(self._line.delay, delay_s, jitter_s, _both(ways))

    def lose_next_reply(self, containing: bytes | str = b"", *, after_bytes: int = 0) -> None:
        """Passes one request, drops its reply, then resets that connection.

        The request is the first one that contains `containing`, such as a key (text as UTF-8; with TLS nothing can be
        found), by default the next data of any client, which may be a ping. The first `after_bytes` of the reply still
        pass. The reset happens when the server has sent nothing for 0.1 s after data was dropped: the reply is then
        assumed to be complete. `statistics().replies_lost` counts them.
        """
        if not is_whole(after_bytes) or after_bytes < 0:
            raise SettingsError(f"after_bytes must be a whole number of at least 0, not {after_bytes!r}")
        self._thread.call(self._line.lose, Loss(_as_bytes(containing), after_bytes))

    def heal(self) -> None:
        """Ends all faults. Data that was held back passes."""
        self._thread.call(self._line.heal)

    def statistics(self) -> LinkStatistics:
        """Counts so far, and the number of open connections. A snapshot."""
        return self._thread.call(lambda: self._line.statistics)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self._line.faults}>"


def _both(ways: Directions) -> tuple[Direction, ...]:
    found = _WAYS.get(ways)
    if found is None:
        raise SettingsError(f'a direction must be "up", "down" or "both", not {ways!r}')
    return found


def _as_bytes(containing: object) -> bytes:
    if isinstance(containing, str):
        return containing.encode()
    if isinstance(containing, bytes):
        return containing
    raise SettingsError(f"containing must be bytes or text, not {containing!r}")
