"""What a rank reports about itself: the newest figures, sent now and then, dropped when nobody takes them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from instep.wire.messages import Report
from instep.worker.agent_connection import AgentConnection

log = logging.getLogger("instep")

MAX_METRICS = 64


class Reports:
    """Holds one value a name. Tensors are detached when given and read when sent, so `report` itself never waits."""

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
        connection.send(Report(figures), droppable=True)
