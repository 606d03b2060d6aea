"""How long the run stands still, and how much of that no fault explains. Pure: time is given."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class StallClock:
    """`standing_s`: since the last step. `unexplained_s`: the part of it in which nothing was broken on purpose.

    `longest_s` and `longest_unexplained_s` are the maxima of both over the run.
    """

    standing_s: float = 0.0
    unexplained_s: float = 0.0
    longest_s: float = 0.0
    longest_unexplained_s: float = 0.0
    _progress: tuple[int, int] = (0, -1)
    _looked_at: float | None = field(default=None)

    def look(self, now: float, progress: tuple[int, int], *, broken: bool) -> None:
        """To be called often: `progress` is (epoch, lowest step done), `broken` whether a fault is going on."""
        since_s = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        if progress != self._progress:
            self._progress = progress
            self.standing_s = self.unexplained_s = 0.0
            return
        self.standing_s += since_s
        if not broken:
            self.unexplained_s += since_s
        self.longest_s = max(self.longest_s, self.standing_s)
        self.longest_unexplained_s = max(self.longest_unexplained_s, self.unexplained_s)
