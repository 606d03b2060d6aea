"""Trouble that comes back at each attempt: said when it begins and when it is over, and not in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from instep.errors import EtcdFull

log = logging.getLogger("instep")


class Outage:
    """Of one kind of work that is tried again and again: `met` each failure, `over` at each success.

    Promise: one line when it begins to fail, one when it fails for another reason, and one that says how long it
    lasted, in seconds. Limit: what happened in between is in the log only at the level DEBUG.
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
        if self._kind is None:
            self._since, self.failures = self._clock(), 0
        self.failures += 1
        known, self._kind = self._kind is type(error), type(error)
        # A full database stops everything that writes, and is told in full where the agent tells it to people.
        reason = "etcd's database is full" if isinstance(error, EtcdFull) else error
        log.log(logging.DEBUG if known else self._level, "%s: %s", self._what, reason)

    def over(self) -> None:
        if self._kind is None:
            return
        self._kind = None
        lasted_s = self._clock() - self._since
        log.log(self._level, "%s: over after %.1f s and %d failures", self._what, lasted_s, self.failures)
