"""How soon another rank leads when the leader is killed or its node is frozen, and how soon a change is agreed when the
leading agent is killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from signal import SIGCONT, SIGSTOP
from time import monotonic

from chaos.harness.processes import send

from benchmarks.figures import Figure, median
from benchmarks.fleet import RUN, Fleet, Worker
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import Agreed
from instep.testing import EtcdServer

STEP_S = 0.001
TTL_S = 2
LIMIT_S = 30.0
SETTLE_S = 1.0
MS = 1e3
KILLED_TARGET_MS = 100.0
LONGEST_TARGET_MS = 1000.0
FROZEN_TARGET_S = TTL_S + 1.5
AGENT_TTL_S = 30
AGENT_TARGET_S = 1.0


async def measure(*, quick: bool) -> list[Figure]:
    kills, freezes = (3, 1) if quick else (20, 3)
    with EtcdServer() as server:
        same = await _sample_kills(server, kills, nodes=1, per_node=3)
    with EtcdServer() as server:
        other = await _sample_kills(server, kills, nodes=2, per_node=2)
    with EtcdServer() as server:
        frozen = await _sample_freezes(server, freezes)
    with EtcdServer() as server:
        agents = await _sample_agent_kills(server, kills)
    return [
        *_kill_figures(same, "a rank of the same node"),
        *_kill_figures(other, "a rank of another node"),
        Figure(
            measure="leading node frozen, until another node leads: longest",
            value=max(frozen),
            unit="s",
            target=FROZEN_TARGET_S,
            note=f"{len(frozen)} freezes of all its processes; the lease lasts {TTL_S} s",
        ),
        Figure(
            measure="leading agent and its supervisor killed, until a change is agreed: median",
            value=median(agents),
            unit="s",
            target=AGENT_TARGET_S,
            note=f"{len(agents)} kills; a worker starts another agent; the lease lasts {AGENT_TTL_S} s",
        ),
        Figure(measure="the same: longest", value=max(agents), unit="s"),
    ]


def _kill_figures(times: list[float], successor: str) -> list[Figure]:
    note = f"{len(times)} kills; until the boundary at which `run.leads` is True on the next leader; steps of 1 ms"
    return [
        Figure(
            measure=f"leader killed, until {successor} leads: median",
            value=median(times) * MS,
            unit="ms",
            target=KILLED_TARGET_MS,
            note=note,
        ),
        Figure(measure="the same: longest", value=max(times) * MS, unit="ms", target=LONGEST_TARGET_MS),
    ]


async def _sample_kills(server: EtcdServer, kills: int, *, nodes: int, per_node: int) -> list[float]:
    """Repeatedly kills the process of the leader and restarts that rank."""
    times: list[float] = []
    async with _training(server, nodes=nodes, per_node=per_node) as ranks:
        for _ in range(kills):
            leader = await ranks.leader()
            began = monotonic()
            leader.worker.process.kill()
            times.append(await ranks.led_since(began, ranks.others(leader)) - began)
            await ranks.restart(leader)
    return times


async def _sample_freezes(server: EtcdServer, freezes: int) -> list[float]:
    """Repeatedly stops all processes of the leading node, and resumes them when another node leads."""
    times: list[float] = []
    async with _training(server, nodes=2, per_node=2) as ranks:
        for _ in range(freezes):
            leader = await ranks.leader()
            node = leader.worker.node
            there = [rank for rank in ranks.others() if rank.worker.node is node]
            elsewhere = [rank for rank in ranks.others() if rank.worker.node is not node]
            with _stopped([*reversed(node.agents()), *(rank.worker.process.pid for rank in there)]):
                began = monotonic()
                times.append(await ranks.led_since(began, elsewhere) - began)
            await ranks.until(partial(_none_leads, there))
    return times


async def _sample_agent_kills(server: EtcdServer, kills: int) -> list[float]:
    """Repeatedly kills the leading agent and its supervisor, and requests a change at once."""
    times: list[float] = []
    keys = Keys("/training", RUN)
    async with (
        _training(server, nodes=1, per_node=2, ttl_s=AGENT_TTL_S) as ranks,
        Client(server.endpoints) as client,
    ):
        for number in range(1, kills + 1):
            leader = await ranks.leader()
            async with client.watch(keys.agreed, prefix=False) as watch, asyncio.timeout(LIMIT_S):
                leader.worker.node.kill_agent_and_supervisor()
                began = monotonic()
                await client.put(f"{keys.config}lr", str(number))
                async for batch in watch:
                    if any(_agrees(event.kv.value, number) for event in batch.events):
                        break
            times.append(monotonic() - began)
            await asyncio.sleep(SETTLE_S)
    return times


def _agrees(value: bytes, number: int) -> bool:
    agreed = Agreed.decode_or_none(value)
    return agreed is not None and agreed.values.get("lr") == number


def _none_leads(ranks: list[Rank]) -> bool:
    return all(rank.leads_since is None for rank in ranks)


@contextmanager
def _stopped(pids: Iterable[int]) -> Iterator[None]:
    stopped = list(pids)
    send(stopped, SIGSTOP)
    try:
        yield
    finally:
        send(stopped, SIGCONT)


class Rank:
    """One rank: its worker, and when it last began to lead (None while it does not lead)."""

    def __init__(self, worker: Worker, changed: asyncio.Event) -> None:
        self.worker = worker
        self.leads_since: float | None = None
        self.trains = False
        self._changed = changed
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for leads, at in self.worker.documents():
            self.trains, self.leads_since = True, at if leads else None
            self._changed.set()

    async def kill(self) -> None:
        await self.worker.kill()
        await self._reading


class Ranks:
    """All ranks of one run, whose workers report when they begin and cease to lead."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._changed = asyncio.Event()
        self._all = {number: Rank(worker, self._changed) for number, worker in fleet.workers.items()}

    async def restart(self, rank: Rank) -> None:
        """Starts a killed rank again, and waits until all ranks train."""
        await rank.kill()
        number = rank.worker.rank
        self._all[number] = Rank(await self._fleet.start(number), self._changed)
        await self.until_all_train()

    async def until_all_train(self) -> None:
        await self.until(lambda: all(rank.trains for rank in self.others()))

    def others(self, but: Rank | None = None) -> list[Rank]:
        return [rank for rank in self._all.values() if rank is not but]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Checks the condition after each report of a rank. Raises TimeoutError after 30 s."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def leader(self) -> Rank:
        """The one rank that leads, once there is one."""
        await self.until(lambda: len(self._leaders()) == 1)
        return self._leaders()[0]

    async def led_since(self, moment: float, candidates: list[Rank]) -> float:
        """When the first of the candidates began to lead after `moment`."""
        await self.until(lambda: any((rank.leads_since or 0.0) > moment for rank in candidates))
        return min(since for rank in candidates if (since := rank.leads_since) is not None and since > moment)

    def _leaders(self) -> list[Rank]:
        return [rank for rank in self.others() if rank.leads_since is not None]

    async def kill_all(self) -> None:
        await asyncio.gather(*(rank.kill() for rank in self.others()))


@asynccontextmanager
async def _training(server: EtcdServer, *, nodes: int, per_node: int, ttl_s: int = TTL_S) -> AsyncIterator[Ranks]:
    """Ranks that all train; they are killed at the end."""
    async with Fleet(server, "leads", str(STEP_S), nodes=nodes, per_node=per_node, ttl_s=ttl_s) as fleet:
        ranks = Ranks(fleet)
        try:
            await ranks.until_all_train()
            yield ranks
        finally:
            await ranks.kill_all()
