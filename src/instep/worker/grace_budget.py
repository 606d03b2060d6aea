"""How much time a process has after a preemption notice, and what fits into it. Pure: the clock is an argument."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

SAVES_KEPT: Final = 5
"""Uses the slowest of the last five saves; older outliers are dropped."""
SAVE_FACTOR: Final = 1.5
"""The next save may be slower than any before it."""
LEAVING_S: Final = 1.0
"""For the commit, leaving, and the end of the interpreter, which gets half of it."""
SHORTEST_GOODBYE_S: Final = 0.2
AGREEING_SHARE: Final = 0.25
"""Share of the grace period for agreeing on the last step, however long a save takes."""


class GraceBudget:
    """`at` is the time of the notice, None before it. `grace_s` is the time from the notice to the expected SIGKILL:
    a process cannot know it, so it is configured.

    Limit: `at` is when the interpreter handled the signal. A running call into C (a collective, a kernel launch)
    delays that.
    """

    def __init__(self, grace_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.grace_s = grace_s
        self.at: float | None = None
        self._clock = clock
        self._saves: deque[float] = deque(maxlen=SAVES_KEPT)
        self._newest = ""

    def __repr__(self) -> str:
        told = "none" if self.at is None else f"{self._clock() - self.at:.1f} s ago"
        return f"GraceBudget({told}, grace {self.grace_s:g} s, a save takes {self.save_s:.1f} s)"

    def take(self) -> None:
        """Records the notice. Only the first one counts."""
        if self.at is None:
            self.at = self._clock()

    def saw_save(self, checkpoint_id: str, duration_s: float) -> bool:
        """Records the duration of a committed checkpoint; False if it was recorded already."""
        if checkpoint_id == self._newest:
            return False
        self._newest = checkpoint_id
        self._saves.append(duration_s)
        return True

    @property
    def save_s(self) -> float:
        """The expected duration of a save; 0 while none is known."""
        return max(self._saves, default=0.0)

    @property
    def agreeing_s(self) -> float:
        """After so long without an agreed stop it is too late for a save."""
        return max(self.grace_s - self._needed_s, AGREEING_SHARE * self.grace_s)

    @property
    def agree_by(self) -> float | None:
        """The same as a time on the clock."""
        return None if self.at is None else self.at + self.agreeing_s

    @property
    def waited_s(self) -> float:
        return 0.0 if self.at is None else self._clock() - self.at

    @property
    def left_s(self) -> float:
        """Seconds until the kill; infinite without a notice."""
        return math.inf if self.at is None else max(0.0, self.at + self.grace_s - self._clock())

    @property
    def settling_s(self) -> float:
        """How long a process that leaves may wait for unanswered commits."""
        return max(0.0, self.left_s - LEAVING_S)

    @property
    def goodbye_s(self) -> float:
        """How long it may wait for the confirmation that it has left."""
        return max(SHORTEST_GOODBYE_S, self.left_s - LEAVING_S / 2)

    @property
    def shortage(self) -> str | None:
        """Warns that a save may not finish before the kill, and how to fix it; None if it fits."""
        if self._saves and self.grace_s - self._needed_s < AGREEING_SHARE * self.grace_s:
            enough_s = math.ceil(self._needed_s / (1 - AGREEING_SHARE))
            return (
                f"a save takes {self.save_s:.1f} s and there are {self.grace_s:g} s from SIGTERM to SIGKILL: it may "
                "not be finished; raise terminationGracePeriodSeconds (Kubernetes; other schedulers have their own) "
                f"and INSTEP_GRACE_S to {enough_s} or more"
            )
        return None

    @property
    def _needed_s(self) -> float:
        return SAVE_FACTOR * self.save_s + LEAVING_S
