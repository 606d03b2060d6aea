"""The faults of the members of the cluster: each is a coroutine that returns when the cluster serves again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from instep.testing import EtcdCluster

HEALTHY_TIMEOUT_S = 30.0
INCONSISTENT_AFTER_A_CRASH = ("3.5.0", "3.5.1", "3.5.2")
"""A crash under load can leave such a member with data that differ from its peers'; chaos finds it within a minute."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outage:
    """A fault of a member as clients see it: when it became unreachable, and when it was reachable again."""

    kind: str
    member: int
    began: float
    ended: float


class Servers:
    """One member fails at a time, or two if the fault is the loss of the quorum; never more.

    A separate thread uses the cluster, because starting and stopping a member takes time.
    """

    def __init__(self, cluster: EtcdCluster) -> None:
        self.cluster = cluster
        self.outages: list[Outage] = []
        self.thaws: list[float] = []
        """When a member that had been frozen was about to resume (monotonic seconds)."""
        self.kills_and_stops = 0
        self.unsafe = cluster.version in INCONSISTENT_AFTER_A_CRASH
        self._thread = ThreadPoolExecutor(1, "chaos-cluster")

    def __repr__(self) -> str:
        return f"Servers({self.cluster!r}, {len(self.outages)} outages)"

    async def killed(self, targets: tuple[int, ...], for_s: float, kind: str) -> None:
        """Kills those members, or stops them cleanly if a kill is `unsafe`, and restarts them after `for_s`."""
        began = time.monotonic()
        for target in targets:
            member = self.cluster.members[target]
            await self._do(member.stop if self.unsafe else member.kill)
        self.kills_and_stops += len(targets)
        await asyncio.sleep(for_s)
        for target in targets:
            # Two that come back need each other before they serve: neither start waits for that.
            await self._do(self.cluster.members[target].launch)
        await self._ended(kind, targets, began)

    async def frozen(self, targets: tuple[int, ...], for_s: float, kind: str) -> None:
        """Freezes those members: they keep their connections and answer nothing."""
        began = time.monotonic()
        for target in targets:
            await self._do(self.cluster.members[target].pause)
        self.kills_and_stops += len(targets)
        await asyncio.sleep(for_s)
        for target in targets:
            self.thaws.append(time.monotonic())
            await self._do(self.cluster.members[target].resume)
        await self._ended(kind, targets, began)

    async def isolated(self, target: int, for_s: float, kind: str) -> None:
        """Neither the other members nor the clients beside the run reach that member."""
        began = time.monotonic()
        member = self.cluster.members[target]
        await self._do(lambda: self.cluster.isolate(member))
        await asyncio.sleep(for_s)
        await self._do(self.cluster.heal)
        await self._ended(kind, (target,), began)

    async def defragmented(self, target: int) -> None:
        member = self.cluster.members[target]
        await self._do(lambda: self.cluster.defragment(member))

    def close(self) -> None:
        self._thread.shutdown(wait=True)

    async def _ended(self, kind: str, targets: tuple[int, ...], began: float) -> None:
        ended = time.monotonic()
        self.outages += [Outage(kind, target, began, ended) for target in targets]
        await self._do(lambda: self.cluster.wait_healthy(timeout_s=HEALTHY_TIMEOUT_S))

    async def _do(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
