"""The faults of a link, as decisions: what is held, how long it takes, which reply is lost."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass, field

from instep.testing._flow import Way

QUIET_S = 0.1
"""The reply that is lost has been lost whole when its server has said nothing for so long."""


@dataclass(slots=True)
class Faults:
    """What is wrong with a link now. `cut`: nothing gets through and nothing stands."""

    cut: bool = False
    held: set[Way] = field(default_factory=set)
    delays: dict[Way, tuple[float, float]] = field(default_factory=dict)
    loss: Loss | None = None

    def delay_s(self, way: Way, chance: random.Random) -> float:
        """How long what comes now is to wait."""
        delay_s, jitter_s = self.delays.get(way, (0.0, 0.0))
        return delay_s + chance.uniform(0.0, jitter_s) if jitter_s else delay_s

    def __str__(self) -> str:
        words = ["cut"] if self.cut else []
        words += [f"{way} held" for way in sorted(self.held)]
        words += [f"{way} delayed {delay_s:g}+{jitter_s:g} s" for way, (delay_s, jitter_s) in self.delays.items()]
        words += ["a reply to be lost"] if self.loss is not None else []
        return ", ".join(words) or "no fault"


class Loss:
    """One reply that will be lost: that to the first request in which `containing` is found.

    Of what comes back after that request, `after_bytes` pass and the rest is swallowed. Pure: connections are
    told apart by any hashable thing.
    """

    def __init__(self, containing: bytes = b"", after_bytes: int = 0) -> None:
        self._containing = containing
        self._passing = after_bytes
        self._tails: dict[Hashable, bytes] = {}
        self.victim: Hashable | None = None
        self.lost_bytes = 0

    def sent(self, connection: Hashable, data: bytes) -> None:
        """Bytes go up on a connection: it is the victim's if they complete what is looked for."""
        if self.victim is not None:
            return
        seen = self._tails.get(connection, b"") + data
        if self._containing in seen:
            self.victim = connection
            self._tails.clear()
        else:
            self._tails[connection] = seen[len(seen) - len(self._containing) + 1 :]

    def answered(self, connection: Hashable, data: bytes) -> bytes:
        """Bytes come down on a connection: those that may go on."""
        if connection != self.victim:
            return data
        passed, lost = data[: self._passing], data[self._passing :]
        self._passing -= len(passed)
        self.lost_bytes += len(lost)
        return passed

    def ended(self, connection: Hashable) -> None:
        """A connection has ended by itself: if it was the victim's, another will be."""
        self._tails.pop(connection, None)
        if connection == self.victim and not self.lost_bytes:
            self.victim = None
