"""Carries out the plan of faults: one lane for each kind of process, all lanes at once."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from chaos.fault_plan import MEMBERS, RANKS_PER_NODE, WORLD_SIZE, Fault, Lane
from chaos.harness.link import Link
from chaos.harness.node import LinkedNode
from chaos.harness.ranks import Ranks
from chaos.harness.tasks import until
from chaos.servers import Servers

Compact = Callable[[], Awaitable[bool]]
LinkOfLeader = Callable[[], Link | None]
"""The link of the client that holds the named lock, None if no client does."""
Leading = Callable[[], Awaitable[int | None]]
"""The rank that leads the run; None when that is not known."""
HOLDER_TIMEOUT_S = 2.0
LOSE_AGAIN_S = 0.05


class FaultInjector:
    """Begins and ends faults. While it is suspended no new fault begins, and active ones end as planned.

    `open` holds the active faults. After a suspension the plan is late by that time.
    """

    def __init__(
        self,
        servers: Servers,
        nodes: Sequence[LinkedNode],
        ranks: Ranks,
        *,
        compact: Compact,
        link_of_leader: LinkOfLeader,
        leading: Leading,
        journal: Path,
    ) -> None:
        self.done: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()
        self.open: dict[Lane, Fault] = {}
        self.agent_kills = 0
        self.leaders_lost: list[float] = []
        """When the agent of the node that led was killed together with its supervisor, and neither servers nor ranks
        were broken at that moment (monotonic seconds)."""
        self.worker_kills = 0
        self.ranks_lock = asyncio.Lock()
        """Held while ranks are killed and started, because a restart of all must not overlap with such a fault."""
        self._servers = servers
        self._nodes = nodes
        self._ranks = ranks
        self._compact = compact
        self._link_of_leader = link_of_leader
        self._leading = leading
        self._journal = journal
        self._may_begin = asyncio.Event()
        self._may_begin.set()

    def __repr__(self) -> str:
        active = ", ".join(map(str, self.open.values())) or "none"
        return f"FaultInjector({sum(self.done.values())} faults, active: {active})"

    def suspend(self, suspended: bool) -> None:
        if suspended:
            self._may_begin.clear()
        else:
            self._may_begin.set()

    @property
    def suspended(self) -> bool:
        return not self._may_begin.is_set()

    async def run(self, faults: Sequence[Fault], duration_s: float) -> None:
        """Returns when all faults have ended, and the time of those that have not begun has passed."""
        began = time.monotonic()
        lanes = [[fault for fault in faults if fault.lane is lane] for lane in Lane]
        async with asyncio.TaskGroup() as group:
            for lane in lanes:
                group.create_task(self._run_lane(lane, began, began + duration_s))

    async def _run_lane(self, faults: Sequence[Fault], began: float, until: float) -> None:
        late_s = 0.0
        for fault in faults:
            await asyncio.sleep(max(0.0, began + fault.at_s + late_s - time.monotonic()))
            await self._may_begin.wait()
            late_s = max(0.0, time.monotonic() - began - fault.at_s)
            if time.monotonic() + fault.for_s > until:
                return
            self.open[fault.lane] = fault
            at = time.monotonic()
            try:
                done = await self._do(fault)
            finally:
                del self.open[fault.lane]
            (self.done if done else self.missed)[fault.kind] += 1
            self._note(fault, at, done=done)

    def _note(self, fault: Fault, at: float, *, done: bool) -> None:
        line = {**asdict(fault), "done": done, "began": at, "ended": time.monotonic()}
        with self._journal.open("a") as journal:
            journal.write(json.dumps(line) + "\n")

    async def _do(self, fault: Fault) -> bool:
        """False when there was nothing to break: no agent there at that moment, for example."""
        match fault.lane:
            case Lane.SERVERS:
                return await self._break_servers(fault)
            case Lane.AGENTS:
                return await self._break_agent(fault, self._nodes[fault.target])
            case Lane.WORKERS:
                return await self._break_workers(fault)
            case Lane.HOLDERS:
                return await self._break_holder(fault)

    async def _break_servers(self, fault: Fault) -> bool:
        others = tuple(member for member in range(MEMBERS) if member != fault.target)
        match fault.kind:
            case "member killed":
                await self._servers.killed((fault.target,), fault.for_s, fault.kind)
            case "member frozen":
                await self._servers.frozen((fault.target,), fault.for_s, fault.kind)
            case "member isolated":
                await self._servers.isolated(fault.target, fault.for_s, fault.kind)
            case "quorum killed":
                await self._servers.killed(others, fault.for_s, fault.kind)
            case "quorum frozen":
                await self._servers.frozen(others, fault.for_s, fault.kind)
            case "history compacted":
                return await self._compact()
            case "member defragmented":
                await self._servers.defragmented(fault.target)
            case _:
                raise AssertionError(f"no such fault: {fault}")
        return True

    async def _break_agent(self, fault: Fault, node: LinkedNode) -> bool:
        match fault.kind:
            case "agent killed":
                killed = node.signal_agent(signal.SIGKILL) is not None
                self.agent_kills += killed
                return killed
            case "agent frozen" | "agent frozen until replaced":
                pid = node.signal_agent(signal.SIGSTOP)
                await asyncio.sleep(fault.for_s)
                if pid is not None:
                    node.signal_agent(signal.SIGCONT, pid)
                return pid is not None
            case "agent and supervisor killed":
                return await self._kill_all(node)
            case "addresses moved":
                return await self._move(fault, node.link)
            case "listings lost as a term begins":
                return await self._lose_listings(fault)
            case "agent cut off":
                node.link.cut_off()
            case "agent unanswered":
                node.link.silence()
            case _:
                raise AssertionError(f"no such fault: {fault}")
        await asyncio.sleep(fault.for_s)
        node.link.heal()
        return True

    async def _kill_all(self, node: LinkedNode) -> bool:
        leader = await self._leading()
        at = time.monotonic()
        killed = node.kill_agent_and_supervisor()
        self.agent_kills += killed
        alone = not self.open.keys() & {Lane.SERVERS, Lane.WORKERS}
        if killed and alone and leader is not None and self._ranks.node_of(leader) is node:
            self.leaders_lost.append(at)
        return killed

    @staticmethod
    async def _move(fault: Fault, link: Link) -> bool:
        if not link.can_move:
            return False
        link.leave_address()
        await asyncio.sleep(fault.for_s)
        link.arrive_elsewhere()
        return True

    async def _lose_listings(self, fault: Fault) -> bool:
        leader = await self._leading()
        if leader is None:
            return False
        until = time.monotonic() + fault.for_s
        killed = self._ranks.node_of(leader).kill_agent_and_supervisor()
        self.agent_kills += killed
        while time.monotonic() < until:
            for node in self._nodes:
                node.link.lose_listings()
            await asyncio.sleep(LOSE_AGAIN_S)
        for node in self._nodes:
            node.link.heal()
        return killed

    async def _break_holder(self, fault: Fault) -> bool:
        if not await until(lambda: self._link_of_leader() is not None, HOLDER_TIMEOUT_S):
            return False
        link = self._link_of_leader()
        assert link is not None
        link.cut_off()
        await asyncio.sleep(fault.for_s)
        link.heal()
        return True

    async def _break_workers(self, fault: Fault) -> bool:
        match fault.kind:
            case "worker killed":
                await self._replace((fault.target,), fault.for_s)
            case "node's workers killed":
                first = fault.target * RANKS_PER_NODE
                await self._replace(tuple(range(first, first + RANKS_PER_NODE)), fault.for_s)
            case "all workers killed":
                await self._replace(tuple(range(WORLD_SIZE)), fault.for_s)
            case "worker and agent killed":
                self.agent_kills += self._ranks.node_of(fault.target).signal_agent(signal.SIGKILL) is not None
                await self._replace((fault.target,), fault.for_s)
            case "worker frozen":
                async with self.ranks_lock:
                    self._ranks.signal(signal.SIGSTOP, fault.target)
                    await asyncio.sleep(fault.for_s)
                    self._ranks.signal(signal.SIGCONT, fault.target)
            case "interpreter held":
                async with self.ranks_lock:
                    held = self._ranks.hold_interpreter(fault.target, fault.for_s)
                    await asyncio.sleep(fault.for_s)
                return held
            case _:
                raise AssertionError(f"no such fault: {fault}")
        return True

    async def _replace(self, ranks: tuple[int, ...], after_s: float) -> None:
        self.worker_kills += 1
        await self.restart(ranks, after_s)

    async def restart(self, ranks: tuple[int, ...], after_s: float = 0.0) -> None:
        """Kills these ranks and restarts them after a while, as torchrun would. If all are killed, an epoch begins."""
        async with self.ranks_lock:
            self._ranks.kill(ranks)
            await asyncio.sleep(after_s)
            if len(ranks) == WORLD_SIZE:
                self._ranks.begin_epoch()
            self._ranks.start(ranks)
