"""A way from clients to a server, with faults as methods."""

from __future__ import annotations

import math
from typing import Literal

from instep.errors import SettingsError
from instep.etcd_server.ports import is_whole
from instep.testing._faults import Loss
from instep.testing._flow import Way
from instep.testing._line import Line, LinkStatistics
from instep.testing._loop import LoopThread

Ways = Literal["up", "down", "both"]
_WAYS: dict[str, tuple[Way, ...]] = {"up": ("up",), "down": ("down",), "both": ("up", "down")}


class Link:
    """Connections from clients to one server through a proxy. "up" is towards the server, "down" is back.

    Each fault holds on return, for connections that stand and for those to come, until `heal()`; faults of
    different kinds add up. Bytes that have left the proxy before still arrive. The methods may be called from
    any thread, and wait at most 10 s. Limits: connections are accepted by the kernel, so a fault shows as
    silence or as a reset, never as a lost SYN; a client of a server that is down gets a reset, not a refusal;
    the proxy lives in this process and stands still while something here holds the GIL; at most 1000
    connections, and 1 MiB held in the proxy for each direction of each.
    """

    def __init__(self, thread: LoopThread, line: Line) -> None:
        self._thread = thread
        self._line = line

    @property
    def name(self) -> str:
        """What it leads to, or from where to where."""
        return self._line.name

    def cut(self) -> None:
        """Reset all connections, and every new one."""
        self._thread.call(self._line.cut)

    def reset(self) -> None:
        """Reset the connections that stand; new ones are served."""
        self._thread.call(self._line.reset_all)

    def black_hole(self, ways: Ways = "both") -> None:
        """Accept connections and pass nothing on in these directions: not a byte, not an end, not a reset.

        Nothing is lost: what was sent waits (in the kernel, so a sender of much is blocked) and goes on after
        `heal()`, unless the connection has died meanwhile. That is what TCP makes of a network that comes back.
        """
        self._thread.call(self._line.hold, _both(ways))

    def delay(self, delay_s: float, jitter_s: float = 0.0, ways: Ways = "both") -> None:
        """Let what comes wait `delay_s`, and up to `jitter_s` more at random; the order of bytes is kept."""
        if not all(math.isfinite(seconds) and seconds >= 0 for seconds in (delay_s, jitter_s)):
            raise SettingsError(f"a delay is 0 s or more, and ends: not {delay_s:g} s and {jitter_s:g} s of jitter")
        self._thread.call(self._line.delay, delay_s, jitter_s, _both(ways))

    def lose_next_reply(self, containing: bytes | str = b"", *, after_bytes: int = 0) -> None:
        """Let one request through, swallow what its connection brings back, then reset that connection.

        The request is the first whose bytes hold `containing`, such as a key (text is looked for as UTF-8; with
        TLS they hold nothing that can be found); by default whatever a client says next, which may be a ping.
        `after_bytes` of what comes back still pass. The reset comes when the server has been silent for 0.1 s
        after something was swallowed: as far as bytes tell, it has answered then. `statistics().replies_lost` counts.
        """
        if not is_whole(after_bytes) or after_bytes < 0:
            raise SettingsError(f"the bytes of a reply that still pass are 0 or more, not {after_bytes!r}")
        self._thread.call(self._line.lose, Loss(_as_bytes(containing), after_bytes))

    def heal(self) -> None:
        """End all faults; what was held back goes on."""
        self._thread.call(self._line.heal)

    def statistics(self) -> LinkStatistics:
        """The counts so far, and how many connections are open now."""
        return self._thread.call(lambda: self._line.statistics)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self._line.faults}>"


def _both(ways: Ways) -> tuple[Way, ...]:
    found = _WAYS.get(ways)
    if found is None:
        raise SettingsError(f'a direction is "up", "down" or "both", not {ways!r}')
    return found


def _as_bytes(containing: object) -> bytes:
    if isinstance(containing, str):
        return containing.encode()
    if isinstance(containing, bytes):
        return containing
    raise SettingsError(f"what a request contains is bytes or text, not {containing!r}")
