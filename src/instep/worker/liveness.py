"""Whether the agent is alive, from the beat it writes. Pure: (beat, time) pairs in, a verdict out."""

from __future__ import annotations

from dataclasses import dataclass

SILENCE_S = 10.0
LOOKS = 3
APART_S = 1.0
"""Looks in less time after the one before count as one: the agent beats no faster."""


@dataclass(slots=True)
class LivenessDetector:
    """Stopped means: the same beat at several looks and over `SILENCE_S` seconds. One look is not enough, for a machine
    that slept shows an old beat to whoever wakes first."""

    _beat: float = -1.0
    _since: float = 0.0
    _looks: int = 0
    _counted: float = 0.0

    def is_stopped(self, beat: float, now: float) -> bool:
        """`now` in seconds on the monotonic clock. Once True, it starts anew: for the next agent."""
        if beat != self._beat:
            self._beat, self._since, self._looks, self._counted = beat, now, 0, now
            return False
        if now - self._counted >= APART_S:
            self._looks, self._counted = self._looks + 1, now
        if self._looks < LOOKS or now - self._since < SILENCE_S:
            return False
        self._beat = -1.0
        return True
