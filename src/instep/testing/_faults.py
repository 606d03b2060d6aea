"""The faults of a link, as decisions: what is held back, the delay, and which reply is lost. Pure."""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass, field

from instep.testing._flow import Direction

QUIET_S = 0.1
"""A lost reply counts as complete when the server has sent nothing for this long."""


@dataclass(slots=True)
class Faults:
    """The current faults of a link. `cut`: no connection exists and no new one is accepted."""

    cut: bool = False
    held: set[Direction] = field(default_factory=set)
    delays: dict[Direction, tuple[float, float]] = field(default_factory=dict)
    loss: Loss | None = None

    def delay_s(self, way: Direction, chance: random.Random) -> float:
        """The delay of data that arrives now, in seconds."""
        delay_s, jitter_s = self.delays.get(way, (0.0, 0.0))
        return delay_s + chance.uniform(0.0, jitter_s) if jitter_s else delay_s

    def __str__(self) -> str:
        words = ["cut"] if self.cut else []
        words += [f"{way} held" for way in sorted(self.held)]
        words += [f"{way} delayed {delay_s:g}+{jitter_s:g} s" for way, (delay_s, jitter_s) in self.delays.items()]
        words += ["a reply to be lost"] if self.loss is not None else []
        return ", ".join(words) or "no fault"


class Loss:
    """One reply that will be lost: the reply to the first request that contains `containing`.

    After that request, `after_bytes` of the reply pass and the rest is dropped. Pure: any hashable object can stand for
    a connection.
    """

    def __init__(self, containing: bytes = b"", after_bytes: int = 0) -> None:
        self._containing = containing
        self._passing = after_bytes
        self._tails: dict[Hashable, bytes] = {}
        self.victim: Hashable | None = None
        self.lost_bytes = 0

    def sent(self, connection: Hashable, data: bytes) -> None:
        """Handles bytes of a request. The connection becomes the victim if they complete `containing`."""
        if self.victim is not None:
            return
        seen = self._tails.get(connection, b"") + data
        if self._containing in seen:
            self.victim = connection
            self._tails.clear()
        else:
            self._tails[connection] = seen[len(seen) - len(self._containing) + 1 :]

    def answered(self, connection: Hashable, data: bytes) -> bytes:
        """Handles bytes of a reply. Returns those that pass."""
        if connection != self.victim:
            return data
        passed, lost = data[: self._passing], data[self._passing :]
        self._passing -= len(passed)
        self.lost_bytes += len(lost)
        return passed

    def ended(self, connection: Hashable) -> None:
        """Handles the end of a connection. If it was the victim, the next match becomes the victim."""
        self._tails.pop(connection, None)
        if connection == self.victim and not self.lost_bytes:
            self.victim = None
