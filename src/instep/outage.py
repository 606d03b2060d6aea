"""Log throttle for repeated failures: one line when they begin, one when they end, none in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from instep.errors import EtcdFull

log = logging.getLogger("instep")


class Outage:
    """Repeated failures of one kind of work: call `met` at each failure and `over` at each success.

    Promise: one line at the first failure, one when the reason changes, and one at the end with the duration in
    seconds. Limit: failures in between are logged at level DEBUG only.
    """

    def __init__(self, what: str, *, level: int = logging.WARNING, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._level = level
        self._clock = clock
        self._since = 0.0
        self._kind: type[Exception] | None = None
        self.failures = 0

    def __repr__(self) -> str:
        return f"Outage({self._what!r}, {f'{self.failures} failures' if self._kind else 'none'})"

    @property
    def on(self) -> bool:
        """True from the first failure to the next success."""
        return self._kind is not None

    def met(self, error: Exception) -> None:
        """Records a failure."""
        if self._kind is None:
            self._since, self.failures = self._clock(), 0
        self.failures += 1
        known, self._kind = self._kind is type(error), type(error)
        # A full database stops every write; the agent logs the full text once.
        reason = "etcd's database is full" if isinstance(error, EtcdFull) else error
        log.log(logging.DEBUG if known else self._level, "%s: %s", self._what, reason)

    def over(self) -> None:
        """Records a success."""
        if self._kind is None:
            return
        self._kind = None
        lasted_s = self._clock() - self._since
        log.log(self._level, "%s: over after %.1f s and %d failures", self._what, lasted_s, self.failures)
