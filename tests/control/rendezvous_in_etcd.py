"""A rendezvous as torchrun's agents would leave it in etcd: the same records under the same keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from instep.etcd import Client, Op
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import (
    Closed,
    Departure,
    Limits,
    Refusal,
    Registration,
    Round,
    Seat,
)

_OPS = 100


class RendezvousInEtcd:
    """Nodes are known by number: `n3` runs on host-3 as pid 103."""

    def __init__(self, client: Client, namespace: str, run: str, *, limits: tuple[int, int]) -> None:
        self.client = client
        self.keys = RendezvousKeys(namespace, run)
        self.limits = Limits(min_nodes=limits[0], max_nodes=limits[1])

    async def register(self, *numbers: int, **fields: Any) -> None:
        puts = [Op.put(f"{self.keys.nodes}n{number}", self._registration(number, fields)) for number in numbers]
        for start in range(0, len(puts), _OPS):
            await self.client.txn([], puts[start : start + _OPS])

    async def unregister(self, *numbers: int) -> None:
        for number in numbers:
            await self.client.delete(f"{self.keys.nodes}n{number}")

    async def form(self, number: int, nodes: Iterable[int], **fields: Any) -> None:
        """Round `number` of these nodes, and each of them content with it."""
        nodes = tuple(nodes)
        seats = tuple(Seat(node=f"n{node}", host=f"host-{node}", pid=100 + node) for node in nodes)
        made = Round(**{"epoch": 1, **fields}, number=number, limits=self.limits, seats=seats)
        await self.client.put(self.keys.round, made.encode())
        await self.register(*nodes, epoch=made.epoch, round=number, asks=False)

    async def depart(self, number: int, departure: Departure) -> None:
        await self.unregister(number)
        await self.client.put(self.keys.gone_of(f"n{number}"), departure.encode())

    async def refuse(self, number: int, reason: str) -> None:
        await self.client.put(self.keys.refused(f"n{number}"), Refusal(reason=reason).encode())

    async def close(self, epoch: int, by: str) -> None:
        await self.client.put(self.keys.closed, Closed(epoch=epoch, by=by).encode())

    def _registration(self, number: int, fields: Mapping[str, Any]) -> str:
        known = {"epoch": 1, "host": f"host-{number}", "pid": 100 + number, "limits": self.limits, "asks": True}
        return Registration(**{**known, **fields}).encode()
