"""How far ahead a gate is set: far enough that the decision exists when the first rank reaches it.

Too small a margin costs an abort (harmless: the change is planned again); too large a margin costs time. Ranks answer
at a boundary, which is predicted from the progress of the running step. The time after it (acks, the decision, ranks
that lag) is learned in steps of the run; a paused run therefore teaches nothing wrong.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

MAX_STEPS = 100_000
MAX_FACTOR = 64
REMEMBERED = 48
COVERED = 0.95
"""The share of the remembered plans for which the margin would have been enough. Measured with 8 ranks and 5 ms steps:
docs/benchmarks.md has the remaining aborts."""
UNKNOWN_TRIPS = 3
"""Assumed writes to etcd between the boundary and the decision, doubled for safety, before the first plan."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """Steps from the current one: ranks answer at the boundary `arming` ahead, the gate is `gate` ahead."""

    arming: int
    gate: int


@dataclass(slots=True)
class Margin:
    """Learns from the plans of one leader; times in seconds."""

    write_s: float = 0.01
    """The duration of a write to etcd until workers see it."""
    factor: int = 1
    _rests_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def ahead(self, step_time_s: float, since_s: float) -> Ahead:
        """`since_s`: time since the last boundary. The gate is at least two steps ahead."""
        step_time_s = max(step_time_s, 1e-6)
        # A step that takes longer than usual may end at any moment.
        arming = max(1, math.ceil((min(since_s, step_time_s) + self.write_s) / step_time_s))
        rest = 1 + math.floor(self.rest_s / step_time_s)
        arming = min(arming, MAX_STEPS)
        return Ahead(arming, min(MAX_STEPS, (arming + rest) * self.factor))

    @property
    def rest_s(self) -> float:
        """Seconds from the boundary at which the ranks answer until the decision."""
        if not self._rests_s:
            return UNKNOWN_TRIPS * self.write_s
        ordered = sorted(self._rests_s)
        return ordered[math.ceil(COVERED * len(ordered)) - 1]

    def opened(self, write_s: float) -> None:
        """Records that writing a plan took `write_s`."""
        self.write_s += (write_s - self.write_s) / 4

    def committed(self, rest_s: float) -> None:
        """Records that a plan was decided `rest_s` after the predicted boundary."""
        self._rests_s.append(max(0.0, rest_s))
        self.factor = max(1, self.factor // 2)

    def aborted(self, had_s: float) -> None:
        """Records that a rank reached the gate, `had_s` after the predicted boundary, before the decision."""
        self._rests_s.append(1.1 * had_s / self.factor)  # the factor applies to the retry only
        self.factor = min(MAX_FACTOR, self.factor * 2)
