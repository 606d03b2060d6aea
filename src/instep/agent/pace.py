"""How fast the node's workers step, from the words they share. Pure: (step, time) pairs in, seconds a step out."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 5.0
SPACING_S = 0.2


@dataclass(slots=True)
class PaceMeter:
    """The mean step time over the last few seconds; 0.0 until two boundaries have been seen."""

    _samples: deque[tuple[int, float]] = field(default_factory=deque)

    def observe(self, step: int, at: float) -> None:
        """`at` is the monotonic time, in seconds, of the boundary before `step`."""
        if self._samples and step < self._samples[0][0]:
            self._samples.clear()  # the run was taken back to a checkpoint
        if step < 0 or (self._samples and step <= self._samples[-1][0]):
            return
        if len(self._samples) > 1 and at - self._samples[-2][1] < SPACING_S:
            self._samples.pop()  # the newest pair counts, but pairs too close together tell nothing new
        self._samples.append((step, at))
        while len(self._samples) > 2 and at - self._samples[0][1] > WINDOW_S:
            self._samples.popleft()

    @property
    def step_time_s(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (first, began), (last, ended) = self._samples[0], self._samples[-1]
        return max(0.0, ended - began) / (last - first)
