"""One run under torchrun with all agents on this machine: starts them, kills them, and receives their reports."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Self

from chaos.harness.node import PYTHON_PATH, ROOT
from chaos.harness.processes import command, descendants, marked, send

from benchmarks.rendezvous_backends import ENVIRONMENT, Place, with_torch_loaded
from benchmarks.workers.rendezvous_agent import run_agent

WORKER = ROOT / "benchmarks" / "workers" / "rendezvous_worker.py"
WORK_LIMIT_S = 30.0
END_LIMIT_S = 15.0
LOOK_S = 0.05
NODE = "INSTEP_TAG"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Report:
    """The report of a worker when it began. `world` distinguishes the worlds of one run."""

    group_rank: int
    world_size: int
    world: str
    at: float


class Agent:
    """One torchrun agent, which is one node."""

    def __init__(self, process: BaseProcess | asyncio.subprocess.Process, began: float) -> None:
        assert process.pid is not None
        self.pid = process.pid
        self.began = began
        self.report: Report | None = None
        """Of its worker, while that runs."""
        self._process = process

    @property
    def ended(self) -> bool:
        if isinstance(self._process, BaseProcess):
            return not self._process.is_alive()
        return self._process.returncode is not None


class Run:
    """Leaving kills all processes. `loaded`: its agents begin with torch imported; otherwise each is a new `torchrun`.

    When a worker ends, all workers of its world end, as with a collective.
    """

    def __init__(self, place: Place, nodes: str, *, loaded: bool = True) -> None:
        self.agents: list[Agent] = []
        self._place = place
        self._nodes = nodes
        self._loaded = loaded
        self._folder = Path(tempfile.mkdtemp(prefix="instep-bench-"))
        self._socket = str(self._folder / "s")
        self._names: dict[str, Agent] = {}
        self._lines: dict[StreamWriter, str] = {}
        self._hearing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._heard, self._socket)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill(*self.agents)
        async with asyncio.timeout(END_LIMIT_S):
            while not all(agent.ended for agent in self.agents):  # noqa: ASYNC110  # no event reports it
                await asyncio.sleep(LOOK_S)
        self._server.close()
        for line in list(self._lines):
            line.close()
        if self._hearing:
            await asyncio.wait(self._hearing, timeout=END_LIMIT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def start(self, count: int = 1) -> list[Agent]:
        """Starts `count` more agents at once; waits for the first one if it hosts the store."""
        started = []
        for _ in range(count):
            name = f"{os.getpid()}-{next(_numbers)}"
            agent = await (self._start_loaded(name) if self._loaded else self._start_bare(name))
            started.append(agent)
            self.agents.append(agent)
            self._names[name] = agent
            await self._place.hosted()
        return started

    def kill(self, *agents: Agent, spare: bytes | None = None) -> float:
        """Kills agents and all their processes, as when their nodes die. Returns the time when it began.

        `spare`: not processes with this in their command.
        """
        names = {agent: name for name, agent in self._names.items()}
        pids: list[int] = []
        for agent in agents:
            pids += descendants(agent.pid) + marked(f"{NODE}={names[agent]}") + [agent.pid] * (not agent.ended)
        chosen = [pid for pid in dict.fromkeys(pids) if spare is None or spare not in command(pid)]
        began = monotonic()
        send(chosen, signal.SIGKILL)
        return began

    async def works(self, agents: Iterable[Agent], *, limit_s: float = WORK_LIMIT_S) -> float | None:
        """The time when the workers of exactly these agents ran in one world; None if that is not possible any more.

        It is not when one of them has ended, and is assumed not to be after `limit_s`.
        """
        wanted = list(agents)
        with contextlib.suppress(TimeoutError):
            await self._until(lambda: self._together(wanted) or any(agent.ended for agent in wanted), limit_s)
        if not self._together(wanted):
            return None
        return max(agent.report.at for agent in wanted if agent.report is not None)

    def log(self) -> str:
        """The ends of the output of the agents."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(self._folder.glob("*.log")))

    # -- inside --------------------------------------------------------------------------------------------------------

    @staticmethod
    def _together(agents: list[Agent]) -> bool:
        reports = [agent.report for agent in agents if agent.report is not None]
        sizes = {report.world_size for report in reports}
        return len(reports) == len(agents) and sizes == {len(agents)} and len({report.world for report in reports}) == 1

    async def _until(self, condition: Callable[[], bool], limit_s: float) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):  # no event reports the end of an agent
                    async with asyncio.timeout(LOOK_S):
                        await self._changed.wait()

    def _heard(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(self._hear(reader, writer))
        self._hearing.add(task)
        task.add_done_callback(self._hearing.discard)

    async def _hear(self, reader: StreamReader, writer: StreamWriter) -> None:
        line = await reader.readline()
        if not line:
            writer.close()
            return
        name, *values = json.loads(line)
        agent, report = self._names[name], Report(*values)
        agent.report = report
        self._lines[writer] = report.world
        self._changed.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        if agent.report is report:
            agent.report = None
        for other, world in list(self._lines.items()):
            if world == report.world:
                del self._lines[other]
                other.close()
        self._changed.set()

    async def _start_loaded(self, name: str) -> Agent:
        log = str(self._folder / f"{name}.log")
        process = with_torch_loaded().Process(
            target=run_agent, args=(self._arguments(), self._environment(name), log), name=name
        )
        began = monotonic()
        process.start()
        return Agent(process, began)

    async def _start_bare(self, name: str) -> Agent:
        with (self._folder / f"{name}.log").open("wb") as log:
            began = monotonic()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "torch.distributed.run",
                *self._arguments(),
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment(name)},
                cwd=ROOT,
            )
        return Agent(process, began)

    def _arguments(self) -> list[str]:
        return [*self._place.arguments(self._nodes), f"--log-dir={self._folder}", str(WORKER), self._socket]

    def _environment(self, name: str) -> dict[str, str]:
        return {
            **ENVIRONMENT,
            NODE: name,
            "PYTHONPATH": PYTHON_PATH,
        }
