"""Whether etcd takes writes, as far as this agent's own writes show."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from instep.errors import EtcdDenied, EtcdFull, InstepError

log = logging.getLogger("instep")


class QuotaMonitor:
    """A database that has reached its quota: told once in full, to the log and to `tell`, and once when it is over.

    Limit: it learns from writes that are made anyway. An agent whose workers stand still hears of it late.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        on_denied: Callable[[EtcdDenied], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._on_denied = on_denied
        self._clock = clock
        self._since = 0.0
        self.problem: str | None = None
        """The sentence for people, with the cure; None while etcd takes writes."""

    def __repr__(self) -> str:
        return f"QuotaMonitor({self.problem or 'enough'})"

    def refused(self, error: InstepError) -> None:
        """A write has just failed; only a full database matters here. A missing permission is passed on."""
        if isinstance(error, EtcdDenied):
            self._on_denied(error)
        if not isinstance(error, EtcdFull) or self.problem is not None:
            return
        self.problem, self._since = str(error), self._clock()
        self._say(f"{error} Training goes on with the agreed values, changes wait.")

    def written(self) -> None:
        """A write has been made."""
        if self.problem is None:
            return
        self.problem = None
        self._say(f"etcd takes writes again, after {self._clock() - self._since:.0f} s")

    def _say(self, text: str) -> None:
        log.warning("%s", text)
        self._tell(text)
