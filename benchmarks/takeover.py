"""How soon another worker leads when the one that leads is killed, or its whole node is frozen."""

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
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

import instep
from benchmarks.figures import Figure, median, quantile
from benchmarks.processes import find_agent
from instep.testing import EtcdServer

ROOT = Path(__file__).resolve().parent.parent
STEP_S = 0.001
TTL_S = 2
LIMIT_S = 30.0
MS = 1e3
FROZEN_TARGET_S = TTL_S + 1.5


class Rank:
    """One worker process, and when it began to lead last; None while it does not."""

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
    """All ranks of one run, on nodes that are a folder each."""

    def __init__(self, server: EtcdServer, nodes: int, on_each: int) -> None:
        self._server = server
        self._on_each = on_each
        self._folder = Path(tempfile.mkdtemp(prefix="instep-bench-"))
        self._changed = asyncio.Event()
        self.world_size = nodes * on_each
        self.all: dict[int, Rank] = {}

    async def __aenter__(self) -> Self:
        try:
            for number in range(self.world_size):
                await self.start(number)
            await self.until(lambda: all(rank.trains for rank in self.all.values()))
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
            "INSTEP_TTL_S": str(TTL_S),
            "PYTHONPATH": os.pathsep.join([str(Path(instep.__file__).parent.parent), str(ROOT)]),
            "RANK": str(number),
            "WORLD_SIZE": str(self.world_size),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.workers.leads", str(STEP_S), stdout=PIPE, env=environment, cwd=ROOT
        )
        self.all[number] = Rank(number, folder, process, self._changed)

    async def until(self, condition: object) -> None:
        """Raises TimeoutError after 30 s."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():  # type: ignore[operator]
                self._changed.clear()
                await self._changed.wait()

    async def leader(self) -> Rank:
        """The one that leads, once there is one."""
        await self.until(lambda: any(rank.leads_since is not None for rank in self.all.values()))
        return max(
            (rank for rank in self.all.values() if rank.leads_since is not None), key=lambda rank: rank.leads_since or 0
        )

    async def successor(self, former: Rank, since: float) -> float:
        """When another than `former` began to lead, at or after `since`."""
        others = [rank for rank in self.all.values() if rank is not former]
        await self.until(lambda: any((rank.leads_since or 0.0) >= since for rank in others))
        return max(rank.leads_since or 0.0 for rank in others)

    async def close(self) -> None:
        await asyncio.gather(*(rank.end() for rank in self.all.values()))
        shutil.rmtree(self._folder, ignore_errors=True)


async def measure(*, quick: bool) -> list[Figure]:
    kills, freezes = (3, 1) if quick else (20, 3)
    with EtcdServer() as server:
        same = await _sample_kills(server, kills, nodes=1, on_each=3)
    with EtcdServer() as server:
        other = await _sample_kills(server, kills, nodes=2, on_each=2)
    with EtcdServer() as server:
        frozen = await _sample_freezes(server, freezes)
    print(sorted(same), sorted(other), frozen)
    return []


async def _sample_kills(server: EtcdServer, kills: int, *, nodes: int, on_each: int) -> list[float]:
    """Kill the process of the rank that leads, start it again, and so on."""
    times: list[float] = []
    async with Ranks(server, nodes, on_each) as ranks:
        for _ in range(kills):
            leader = await ranks.leader()
            began = monotonic()
            leader.process.kill()
            times.append(await ranks.successor(leader, began) - began)
            await leader.end()
            await ranks.start(leader.number)
            await ranks.until(lambda: all(rank.trains for rank in ranks.all.values()))
    return times


async def _sample_freezes(server: EtcdServer, freezes: int) -> list[float]:
    """Stop all processes of the node that leads, wake them when another leads, and so on."""
    times: list[float] = []
    async with Ranks(server, 2, 2) as ranks:
        for _ in range(freezes):
            leader = await ranks.leader()
            mine = [rank.process.pid for rank in ranks.all.values() if rank.folder == leader.folder]
            pids = [*find_agent(leader.folder), *mine]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            began = monotonic()
            try:
                others = [rank for rank in ranks.all.values() if rank.folder != leader.folder]
                await ranks.until(lambda others=others, began=began: any((r.leads_since or 0) >= began for r in others))
                times.append(max(rank.leads_since or 0 for rank in others) - began)
            finally:
                for pid in pids:
                    os.kill(pid, signal.SIGCONT)
            await ranks.until(lambda leader=leader: leader.leads_since is None)
    return times
