"""What a rank reports about itself: its newest figures, best effort, and drift of bound hyperparameters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from instep.wire.messages import MetricsReport, PlanApplied
from instep.worker.agent_connection import AgentConnection

log = logging.getLogger("instep")

MAX_METRICS = 64


Check = Callable[[], Mapping[str, str]]
"""Returns, by hyperparameter, how the used value differs from the agreed one. Changes nothing."""


class Reports:
    """Holds one value per name. Tensors are detached when they are reported and read when they are sent, so `report`
    never waits."""

    def __init__(self) -> None:
        self._latest: dict[str, Any] = {}
        self._refused: set[str] = set()

    def update(self, metrics: Mapping[str, object]) -> None:
        for name, value in metrics.items():
            detach = getattr(value, "detach", None)
            self._latest[name] = value if detach is None else detach()

    def send_to(self, connection: AgentConnection) -> None:
        if not self._latest:
            return
        latest, self._latest = self._latest, {}
        figures: dict[str, float] = {}
        for name, value in list(latest.items())[:MAX_METRICS]:
            try:
                figures[name] = float(value)
            except (TypeError, ValueError, RuntimeError, OverflowError):
                if name not in self._refused:
                    self._refused.add(name)
                    log.warning("the metric %r is not a number and is not reported: %.80r", name, value)
        connection.send(MetricsReport(figures), droppable=True)


class DriftWatch:
    """Runs the checks of all bindings, at the boundaries that read the socket: about once a second."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._checks: list[Check] = []
        self._logged: set[str] = set()
        self.names: tuple[str, ...] = ()
        """Hyperparameters that were not used as agreed at the last look."""
        self._changed: frozenset[str] = frozenset()
        """The names that the newest change has set: its receipt says which of them the training does not use."""
        self._is_known = True
        """False until the first look after that change."""

    def __repr__(self) -> str:
        return f"DriftWatch({len(self._checks)} bindings, drift of {', '.join(self.names) or 'nothing'})"

    def __bool__(self) -> bool:
        return bool(self._checks)

    def add(self, check: Check) -> Callable[[], None]:
        """Runs `check` at each look, until the returned function is called."""
        self._checks.append(check)
        return lambda: self._checks.remove(check)

    def look(self) -> tuple[str, ...]:
        """Runs all checks; logs each hyperparameter the first time that it drifts."""
        found: dict[str, str] = {}
        for check in self._checks:
            found.update(check())
        for name, how in found.items():
            if name not in self._logged:
                self._logged.add(name)
                log.warning("the optimizer of rank %d does not hold the agreed %s: %s", self._rank, name, how)
        self.names = tuple(sorted(found))
        return self.names

    def receipt(self, applied: PlanApplied, changed: Iterable[str]) -> PlanApplied:
        """The receipt of a change to these names, with their drift at the last look."""
        self._changed, self._is_known = frozenset(changed), False
        return replace(applied, drift=self._drifted())

    def corrected(self, applied: PlanApplied) -> PlanApplied:
        """The receipt after another look: the first look adds and removes names, later looks only add."""
        if applied.drift is None:
            return applied
        before, now = set(applied.drift), set(self._drifted())
        if self._is_known:
            now |= before
        self._is_known = True
        return applied if now == before else replace(applied, drift=tuple(sorted(now)))

    def _drifted(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name in self._changed)
