"""The node's workers: who is here, who is in the view, who leads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from instep.agent.connection import Connection
from instep.agent.disconnected_worker import DisconnectedWorker
from instep.agent.worker import LocalWorker
from instep.protocol.records import Leader, View, WorkerId
from instep.wire.messages import Leads

MISSED_S: Final = 5.0
"""An agent that has not looked for so long was stopped, or starved, itself."""


class Workers:
    """All of them, in the order they came."""

    def __init__(self) -> None:
        self._by_id: dict[WorkerId, LocalWorker] = {}
        self._somebody = asyncio.Event()
        self._nobody = asyncio.Event()
        self._looked_at = -MISSED_S

    def __iter__(self) -> Iterator[LocalWorker]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def __repr__(self) -> str:
        return f"Workers({', '.join(f'rank {worker.rank}' for worker in self)})"

    def add(self, worker: LocalWorker) -> None:
        """One that connects again keeps its place and closes its former connection."""
        former = self._by_id.get(worker.id)
        if former is not None and former.connection is not worker.connection:
            former.connection.close()
            worker.keep(former)
        self._by_id[worker.id] = worker
        self._somebody.set()

    def remove(self, worker: LocalWorker) -> None:
        if self._by_id.get(worker.id) is worker:
            del self._by_id[worker.id]
        if not self._by_id:
            self._nobody.set()

    async def wait_first(self) -> None:
        """Until somebody has come, who may have gone since."""
        await self._somebody.wait()

    async def wait_gone(self) -> None:
        """Until nobody is here."""
        while self._by_id:
            self._nobody.clear()
            await self._nobody.wait()

    def of(self, connection: Connection | DisconnectedWorker) -> LocalWorker | None:
        return next((worker for worker in self if worker.connection is connection), None)

    def in_view(self, view: View | None, node: str) -> dict[int, LocalWorker]:
        """By rank, those that the view names on this node."""
        mine = view.nodes.get(node) if view is not None else None
        if mine is None:
            return {}
        named = map(WorkerId, mine.ranks, mine.incarnations)
        return {worker.rank: self._by_id[worker] for worker in named if worker in self._by_id}

    def of_id(self, worker: WorkerId) -> LocalWorker | None:
        return self._by_id.get(worker)

    def look(self, now: float, paused_at: int | None) -> None:
        """Measures how fast each one steps. Call it about once a second, `now` in seconds on the monotonic clock: what
        passed while nobody looked counts as no worker's stall, nor does the time before step `paused_at`."""
        missed = now - self._looked_at > MISSED_S
        self._looked_at = now
        for worker in self:
            worker.pace.observe(worker.step, worker.at)
            if missed or (paused_at is not None and worker.step >= paused_at - 1):
                worker.excused_until = max(worker.excused_until, now)

    def furthest(self) -> tuple[int, float]:
        """Step and time of the last boundary of the worker that is ahead; -1 when none has passed one."""
        return max(((worker.step, worker.at) for worker in self), default=(-1, 0.0))

    def tell_leader(self, leader: Leader | None) -> None:
        """Tells each worker that has become, or is no longer, the leader, or leads with another token; and each that is
        new here: it may believe what a former agent said."""
        for worker in self:
            token = leader.token if leader is not None and worker.id == leader.worker else 0
            if token != worker.told_token:
                worker.told_token = token
                candidate = leader.candidate if leader is not None and token else ""
                worker.tell(Leads(token > 0, token, candidate))
