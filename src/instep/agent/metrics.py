"""Figures of the workers, written to etcd for front ends. Best effort."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict

from instep.agent.context import Component, Context
from instep.agent.workers import Workers
from instep.errors import EtcdError
from instep.etcd import Compare, Op
from instep.protocol.records import Metrics, View

log = logging.getLogger("instep")

MIN_INTERVAL_S = 1.0
IDLE_INTERVAL_S = 10.0
"""Interval while nothing happens but steps: each write is a revision that etcd keeps until it is compacted."""
BUSY_S = 15.0
"""After a change of the run's state, figures are written every second for so long."""
RANKS_PER_SECOND = 500
"""Upper bound for the metrics keys that the whole run writes per second, approximately."""
BATCH = 100
TIMEOUT_S = 2.0


class Cadence:
    """When figures are written: soon after a change of the run's state, otherwise rarely. Pure; `now` in seconds on
    the monotonic clock."""

    def __init__(self) -> None:
        self._written_at = -IDLE_INTERVAL_S
        self._busy_until = 0.0

    def run_changed(self, now: float) -> None:
        """The run's state has changed."""
        self._busy_until = now + BUSY_S

    def is_due(self, now: float, world_size: int, *, urgent: bool) -> bool:
        """`urgent`: something other than a number has changed."""
        shortest_s = max(MIN_INTERVAL_S, world_size / RANKS_PER_SECOND)
        busy = urgent or now < self._busy_until
        return now - self._written_at >= (shortest_s if busy else max(shortest_s, IDLE_INTERVAL_S))

    def written(self, now: float) -> None:
        self._written_at = now


class MetricsWriter(Component):
    """Writes on the node's lease: figures of a lost rank expire. Dropped while etcd cannot be reached."""

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(context)
        self._clock = clock
        self._cadence = Cadence()
        self._written: dict[int, Metrics] = {}
        self._lease_id = 0

    def run_changed(self) -> None:
        """The run's state has changed."""
        self._cadence.run_changed(self._clock())

    async def write(self, workers: Workers, view: View | None, step_time_s: float) -> bool:
        """Writes what has changed since the last time, if it is due. False if the registration of a worker is gone,
        or on no lease, although the lease is valid: someone has deleted it or written over it."""
        now, lease_id = self._clock(), self._session.lease_id
        if view is None or not lease_id:
            return True
        if lease_id != self._lease_id:
            self._lease_id, self._written = lease_id, {}  # the former lease's keys are gone
        news = {
            worker.rank: Metrics(
                rank=worker.rank,
                step=worker.step if worker.step >= 0 else None,
                step_time_s=step_time_s or None,
                metrics=dict(worker.metrics),
                **(asdict(worker.status) if worker.status is not None else {}),
            )
            for worker in workers
            if worker.view == view.number
        }
        news = {rank: record for rank, record in news.items() if self._written.get(rank) != record}
        urgent = any(_kind(record) != _kind(self._written.get(rank)) for rank, record in news.items())
        if not news or not self._cadence.is_due(now, view.world_size, urgent=urgent):
            return True
        self._cadence.written(now)
        puts = [Op.put(self._keys.metrics_of(rank), record.encode(), lease=lease_id) for rank, record in news.items()]
        there = [
            Compare.lease(self._keys.member(*worker.id), "!=", 0)
            for worker in workers
            if worker.rank in news and worker.view == view.number
        ]
        registered = True
        try:
            for part in (slice(start, start + BATCH) for start in range(0, len(puts), BATCH)):
                result = await self._client.txn(there[part], puts[part], puts[part], timeout_s=TIMEOUT_S)
                registered &= result.succeeded
        except EtcdError as error:
            log.debug("metrics dropped: %s", error)
            self._quota.refused(error)
            return True
        self._quota.written()
        self._written.update(news)
        return registered


def _kind(record: Metrics | None) -> object:
    """The part of a record that does not change with every step."""
    return None if record is None else (record.step is None, record.actions, record.restores, frozenset(record.metrics))
