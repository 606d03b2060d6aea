"""How soon another rank leads when the one that leads is killed, or its whole node is frozen; and how soon changes are
planned again when the agent that leads is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from chaos.harness.processes import find_agent

import instep
from benchmarks.figures import Figure, median
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import Agreed
from instep.testing import EtcdServer

ROOT = Path(__file__).resolve().parent.parent
STEP_S = 0.001
TTL_S = 2
LIMIT_S = 30.0
LEAVE_S = 10.0
LOOK_S = 0.05
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
        same = await _sample_kills(server, kills, nodes=1, on_each=3)
    with EtcdServer() as server:
        other = await _sample_kills(server, kills, nodes=2, on_each=2)
    with EtcdServer() as server:
        frozen = await _sample_freezes(server, freezes)
    with EtcdServer() as server:
        agents = await _sample_agent_kills(server, kills)
    return [
        *_kill_figures(same, "a rank of the same node"),
        *_kill_figures(other, "a rank of another node"),
        Figure(
            measure="the node that leads frozen, until another leads: longest",
            value=max(frozen),
            unit="s",
            target=FROZEN_TARGET_S,
            note=f"{len(frozen)} freezes of all its processes; the lease lasts {TTL_S} s",
        ),
        Figure(
            measure="the agent that leads killed with its supervisor, until a change is agreed: median",
            value=median(agents),
            unit="s",
            target=AGENT_TARGET_S,
            note=f"{len(agents)} kills; a worker starts another agent; the lease lasts {AGENT_TTL_S} s",
        ),
        Figure(measure="the same: longest", value=max(agents), unit="s"),
    ]


def _kill_figures(times: list[float], successor: str) -> list[Figure]:
    note = f"{len(times)} kills; to the boundary at which the next one's `run.leads` is True, steps of 1 ms"
    return [
        Figure(
            measure=f"the leader killed, until {successor} leads: median",
            value=median(times) * MS,
            unit="ms",
            target=KILLED_TARGET_MS,
            note=note,
        ),
        Figure(measure="the same: longest", value=max(times) * MS, unit="ms", target=LONGEST_TARGET_MS),
    ]


async def _sample_kills(server: EtcdServer, kills: int, *, nodes: int, on_each: int) -> list[float]:
    """Kill the process of the rank that leads, start that rank again, and so on."""
    times: list[float] = []
    async with Ranks(server, nodes, on_each) as ranks:
        for _ in range(kills):
            leader = await ranks.leader()
            began = monotonic()
            leader.process.kill()
            times.append(await ranks.led_since(began, ranks.others(leader)) - began)
            await leader.end()
            await ranks.start(leader.number)
            await ranks.until(lambda: all(rank.trains for rank in ranks.others()))
    return times


async def _sample_freezes(server: EtcdServer, freezes: int) -> list[float]:
    """Stop all processes of the node that leads, wake them when another leads, and so on."""
    times: list[float] = []
    async with Ranks(server, 2, 2) as ranks:
        for _ in range(freezes):
            leader = await ranks.leader()
            there = [rank for rank in ranks.others() if rank.folder == leader.folder]
            elsewhere = [rank for rank in ranks.others() if rank.folder != leader.folder]
            with _stopped([*find_agent(leader.folder), *(rank.process.pid for rank in there)]):
                began = monotonic()
                times.append(await ranks.led_since(began, elsewhere) - began)
            await ranks.until(partial(_none_leads, there))
    return times


async def _sample_agent_kills(server: EtcdServer, kills: int) -> list[float]:
    """Kill the agent that leads and its supervisor, ask for a change at once, and so on."""
    times: list[float] = []
    keys = Keys("/training", "bench")
    async with Ranks(server, 1, 2, ttl_s=AGENT_TTL_S) as ranks, Client(server.endpoints) as client:
        for number in range(1, kills + 1):
            leader = await ranks.leader()
            async with client.watch(keys.agreed, prefix=False) as watch, asyncio.timeout(LIMIT_S):
                for pid in reversed(find_agent(leader.folder)):
                    os.kill(pid, signal.SIGKILL)
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


@contextlib.contextmanager
def _stopped(pids: Iterable[int]) -> Iterator[None]:
    stopped = list(pids)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


class Rank:
    """One worker process, and when it began to lead last: None while it does not."""

    def __init__(self, number: int, folder: Path, process: Process, changed: asyncio.Event) -> None:
        self.number = number
        self.folder = folder
        self.process = process
        self.leads_since: float | None = None
        self.trains = False
        self._changed = changed
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            leads, at = json.loads(line)
            self.trains, self.leads_since = True, at if leads else None
            self._changed.set()

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading


class Ranks:
    """All ranks of one run, on nodes that are a folder each. Leaving kills them."""

    def __init__(self, server: EtcdServer, nodes: int, on_each: int, *, ttl_s: int = TTL_S) -> None:
        self._ttl_s = ttl_s
        self.world_size = nodes * on_each
        self._server = server
        self._on_each = on_each
        self._folder = Path(tempfile.mkdtemp(prefix="instep-bench-"))
        self._changed = asyncio.Event()
        self._all: dict[int, Rank] = {}

    async def __aenter__(self) -> Self:
        try:
            for number in range(self.world_size):
                await self.start(number)
            await self.until(lambda: all(rank.trains for rank in self.others()))
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, number: int) -> None:
        folder = self._folder / str(number // self._on_each)
        folder.mkdir(mode=0o700, exist_ok=True)
        environment = {
            **os.environ,
            **self._server.environment(),
            "INSTEP_RUNTIME_DIR": str(folder),
            "INSTEP_TTL_S": str(self._ttl_s),
            "PYTHONPATH": os.pathsep.join([str(Path(instep.__file__).parent.parent), str(ROOT)]),
            "RANK": str(number),
            "WORLD_SIZE": str(self.world_size),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.workers.leads", str(STEP_S), stdout=PIPE, env=environment, cwd=ROOT
        )
        self._all[number] = Rank(number, folder, process, self._changed)

    def others(self, but: Rank | None = None) -> list[Rank]:
        return [rank for rank in self._all.values() if rank is not but]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Looks whenever a rank has said something. Raises TimeoutError after 30 s."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def leader(self) -> Rank:
        """The one rank that leads, once there is one."""
        await self.until(lambda: len(self._leaders()) == 1)
        return self._leaders()[0]

    async def led_since(self, moment: float, candidates: list[Rank]) -> float:
        """When the first of the candidates began to lead that did so after `moment`."""
        await self.until(lambda: any((rank.leads_since or 0.0) > moment for rank in candidates))
        return min(since for rank in candidates if (since := rank.leads_since) is not None and since > moment)

    def _leaders(self) -> list[Rank]:
        return [rank for rank in self.others() if rank.leads_since is not None]

    async def close(self) -> None:
        await asyncio.gather(*(rank.end() for rank in self.others()))
        with contextlib.suppress(ProcessLookupError):  # an agent that still leaves would write its log again
            for _ in range(int(LEAVE_S / LOOK_S)):
                find_agent(self._folder)
                await asyncio.sleep(LOOK_S)
        shutil.rmtree(self._folder, ignore_errors=True)
