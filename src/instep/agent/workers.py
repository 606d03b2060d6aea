"""The node's workers: who is here, who is in the view, who leads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from instep.agent.absentee import Absentee
from instep.agent.connection import Connection
from instep.agent.worker import LocalWorker
from instep.coordination.records import Leader, View


class Workers:
    """By incarnation, in the order they came."""

    def __init__(self) -> None:
        self._by_incarnation: dict[str, LocalWorker] = {}
        self._somebody = asyncio.Event()
        self._nobody = asyncio.Event()

    def __iter__(self) -> Iterator[LocalWorker]:
        return iter(list(self._by_incarnation.values()))

    def __len__(self) -> int:
        return len(self._by_incarnation)

    def __repr__(self) -> str:
        return f"Workers({', '.join(f'rank {worker.rank}' for worker in self)})"

    def add(self, worker: LocalWorker) -> None:
        """One that connects again keeps its place and closes its former connection."""
        former = self._by_incarnation.get(worker.incarnation)
        if former is not None and former.connection is not worker.connection:
            former.connection.close()
        self._by_incarnation[worker.incarnation] = worker
        self._somebody.set()

    def remove(self, worker: LocalWorker) -> None:
        if self._by_incarnation.get(worker.incarnation) is worker:
            del self._by_incarnation[worker.incarnation]
        if not self._by_incarnation:
            self._nobody.set()

    async def wait_first(self) -> None:
        """Until somebody has come, who may have gone since."""
        await self._somebody.wait()

    async def wait_gone(self) -> None:
        """Until nobody is here."""
        while self._by_incarnation:
            self._nobody.clear()
            await self._nobody.wait()

    def of(self, connection: Connection | Absentee) -> LocalWorker | None:
        return next((worker for worker in self if worker.connection is connection), None)

    def in_view(self, view: View | None, node: str) -> dict[int, LocalWorker]:
        """By rank, those that the view names on this node."""
        mine = view.nodes.get(node) if view is not None else None
        if mine is None:
            return {}
        named = zip(mine.ranks, mine.incarnations, strict=True)
        return {
            rank: self._by_incarnation[incarnation]
            for rank, incarnation in named
            if incarnation in self._by_incarnation
        }

    def would_lead(self) -> LocalWorker | None:
        """The one this node's candidate names: the lowest rank that is here."""
        return min(self, key=lambda worker: worker.rank, default=None)

    def furthest(self) -> tuple[int, float]:
        """Step and time of the last boundary of the worker that is ahead; -1 when none has passed one."""
        return max(((worker.step, worker.at) for worker in self), default=(-1, 0.0))

    def tell_leader(self, leader: Leader | None) -> None:
        """Tells each worker that has become, or is no longer, the leader."""
        for worker in self:
            leads = leader is not None and worker.incarnation == leader.incarnation
            if leads != worker.told_leads:
                worker.told_leads = leads
                worker.tell({"t": "leads", "leads": leads})
