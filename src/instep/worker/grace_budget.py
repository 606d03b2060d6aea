"""How much time a process has that was told to end, and what fits into it. Pure: time comes from outside."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

SAVES_KEPT: Final = 5
"""The longest of the last saves counts: one that was slow long ago need not be feared for ever."""
SAVE_FACTOR: Final = 1.5
"""The next save may be slower than any before it."""
LEAVING_S: Final = 1.0
"""For the commit, the goodbye and the end of the interpreter."""
AGREEING_SHARE: Final = 0.25
"""Of the grace, for the run to agree on the last step, however long a save takes."""


class GraceBudget:
    """`at` is when this process was told to end, None before that. `grace_s` is what it has from then to its expected
    end by SIGKILL: nobody tells a process that, it is a setting.

    Limit: `at` is when the interpreter took notice. A call into C (a collective, a kernel launch) that is under way
    holds that up.
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
        """The process is told to end. Only the first time counts."""
        if self.at is None:
            self.at = self._clock()

    def saw_save(self, checkpoint_id: str, duration_s: float) -> bool:
        """What a committed checkpoint has taken; False for the one that was seen last."""
        if checkpoint_id == self._newest:
            return False
        self._newest = checkpoint_id
        self._saves.append(duration_s)
        return True

    @property
    def save_s(self) -> float:
        """What a save is expected to take: 0 while none is known."""
        return max(self._saves, default=0.0)

    @property
    def agreeing_s(self) -> float:
        """After so long without an agreed stop it is too late for a save."""
        return max(self.grace_s - self._needed_s, AGREEING_SHARE * self.grace_s)

    @property
    def agree_by(self) -> float | None:
        """The same on the clock."""
        return None if self.at is None else self.at + self.agreeing_s

    @property
    def waited_s(self) -> float:
        return 0.0 if self.at is None else self._clock() - self.at

    @property
    def left_s(self) -> float:
        """Until the kill; infinite where nobody has told this process to end."""
        return math.inf if self.at is None else max(0.0, self.at + self.grace_s - self._clock())

    @property
    def shortage(self) -> str | None:
        """That a save may not be finished before the kill, with the cure; None where all is well."""
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
