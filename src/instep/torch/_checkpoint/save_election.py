"""Which rank saves a checkpoint that one rank writes for all. Pure: takes observations, returns a verdict."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

SILENCE_S: Final = 2.0
"""How long a rank waits for a rank to start the save, or to take over from one that stopped."""
PATIENCE_S: Final = 10.0
"""The same if a leader exists that reaches the save later than the others, such as one that evaluates first."""


class SaveVerdict(Enum):
    WAIT = auto()
    LEAD = auto()
    """Save it: this rank leads."""
    SAVED = auto()
    NOBODY = auto()
    """No rank saves it: none has started, or the one that had started gave up."""


class SaveElection:
    """Decides what a rank does at a save: wait, save, or continue.

    Promise: a rank that leads gets LEAD, so a dead saver is replaced at the same step. Limit: while a rank is known to
    save, the others wait without limit; the caller checks whether etcd still answers. `now` is in seconds on a
    monotonic clock.
    """

    def __init__(self, step: int, now: float) -> None:
        self.step = step
        self.begun = False
        self._quiet_since = now
        self._patience_s = SILENCE_S

    def __repr__(self) -> str:
        return f"SaveElection(step {self.step}, {'begun' if self.begun else 'not begun'})"

    def decide(self, *, saved: bool, leads: bool, saving: int | None, now: float) -> SaveVerdict:
        """`saved`: a checkpoint of this step is committed. `saving`: the step that the leader is saving."""
        if saved:
            return SaveVerdict.SAVED
        if leads:
            return SaveVerdict.LEAD
        if saving == self.step:
            self.begun, self._quiet_since, self._patience_s = True, now, SILENCE_S
            return SaveVerdict.WAIT
        return SaveVerdict.NOBODY if now - self._quiet_since >= self._patience_s else SaveVerdict.WAIT

    @property
    def waits_longer(self) -> bool:
        return self._patience_s > SILENCE_S

    def wait_longer(self) -> None:
        """Allows more time: a leader exists and has not started yet."""
        self._patience_s = PATIENCE_S

    def restart_wait(self, now: float) -> None:
        """Restarts the wait: another rank leads and starts over."""
        self._quiet_since = now
