"""What a rank does that stands at a save which one rank makes for all. Pure: what was heard comes in, a verdict out."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

SILENCE_S: Final = 2.0
"""How long a rank waits for somebody to begin with the save, or to take over from one who no longer does."""
PATIENCE_S: Final = 10.0
"""The same, for a leader that is known to be there and comes later than the others, since it evaluates first."""


class Verdict(Enum):
    WAIT = auto()
    LEAD = auto()
    """Save it: this rank leads now."""
    SAVED = auto()
    NOBODY = auto()
    """Nobody saves it: nobody has begun, or who had begun has given up."""


class SaveElection:
    """Promise: a rank that leads leaves with LEAD, so a saver that died is replaced at the same step.

    `now` is in seconds on a monotonic clock. While somebody is known to save it waits without end: whether etcd can
    still be asked about that is the caller's to find out.
    """

    def __init__(self, step: int, now: float) -> None:
        self.step = step
        self.begun = False
        self._quiet_since = now
        self._patience_s = SILENCE_S

    def __repr__(self) -> str:
        return f"SaveElection(step {self.step}, {'begun' if self.begun else 'not begun'})"

    def decide(self, *, saved: bool, leads: bool, saving: int | None, now: float) -> Verdict:
        """`saved`: a checkpoint of this step is committed. `saving`: the step whose checkpoint the leader writes."""
        if saved:
            return Verdict.SAVED
        if leads:
            return Verdict.LEAD
        if saving == self.step:
            self.begun, self._quiet_since, self._patience_s = True, now, SILENCE_S
            return Verdict.WAIT
        return Verdict.NOBODY if now - self._quiet_since >= self._patience_s else Verdict.WAIT

    @property
    def waits_longer(self) -> bool:
        return self._patience_s > SILENCE_S

    def wait_longer(self) -> None:
        """Somebody leads, and has not begun yet."""
        self._patience_s = PATIENCE_S

    def restart_wait(self, now: float) -> None:
        """This rank was refused: another leads, and begins anew."""
        self._quiet_since = now
