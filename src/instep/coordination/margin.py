"""How far ahead a gate is set: far enough that the decision is known everywhere when the first rank gets there.

Too small a margin costs an abort (harmless, the change is planned again); too large a one costs time. So the margin
follows what agreeing has taken lately, and doubles after an abort.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

MIN_STEPS = 2
MAX_STEPS = 100_000
MAX_FACTOR = 64
SAFETY = 1.5
REMEMBERED = 16


@dataclass(slots=True)
class Margin:
    """Learns from the plans of one leader; `round_trip_s` is that of a write to etcd, until plans have been seen."""

    round_trip_s: float = 0.01
    factor: int = 1
    _latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def steps(self, step_time_s: float) -> int:
        """Steps from the one being run now to the gate: at least two."""
        step_time_s = max(step_time_s, 1e-6)
        latency_s = max(self._latencies_s, default=6 * self.round_trip_s)
        # A rank answers at its next boundary: up to one whole step beside the latency of the messages themselves.
        if latency_s * SAFETY < 0.05 * step_time_s:
            ahead = MIN_STEPS
        else:
            ahead = 2 + math.ceil(latency_s * SAFETY / step_time_s)
        return min(MAX_STEPS, ahead * self.factor)

    def committed(self, latency_s: float) -> None:
        """A plan was decided; `latency_s` is what messages took, without the wait for boundaries."""
        self._latencies_s.append(max(0.0, latency_s))
        self.factor = max(1, self.factor // 2)

    def aborted(self) -> None:
        """A rank came to the gate too early."""
        self.factor = min(MAX_FACTOR, self.factor * 2)
