"""Workers of one run: real processes that run one of `benchmarks.workers`, with an agent and a folder of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from chaos.harness.processes import find_agent

import instep
from instep.testing import EtcdServer

ROOT = Path(__file__).resolve().parent.parent
RUN = "bench"
ANSWER_TIMEOUT_S = 90.0
END_TIMEOUT_S = 10.0
START_IN_S = 0.1


class Fleet:
    """`world_size` workers on this machine. Each prints one JSON document a line, which `hear` returns in order.

    Leaving kills those that have not ended after 10 s; a worker that fails shows its traceback on our stderr.
    """

    def __init__(self, server: EtcdServer, script: str, world_size: int, *arguments: str) -> None:
        self.world_size = world_size
        self._command = [sys.executable, "-m", f"benchmarks.workers.{script}", *arguments]
        self._folder = Path(tempfile.mkdtemp(prefix="instep-bench-"))
        self._environment = {
            **os.environ,
            **server.environment(),
            "INSTEP_RUNTIME_DIR": str(self._folder),
            "PYTHONPATH": os.pathsep.join([str(Path(instep.__file__).parent.parent), str(ROOT)]),
            "WORLD_SIZE": str(world_size),
            "OMP_NUM_THREADS": "1",
        }
        self._workers: list[Process] = []

    async def __aenter__(self) -> Self:
        try:
            for rank in range(self.world_size):
                environment = {**self._environment, "RANK": str(rank)}
                worker = await asyncio.create_subprocess_exec(
                    *self._command, stdin=PIPE, stdout=PIPE, env=environment, cwd=ROOT
                )
                self._workers.append(worker)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def hear(self, rank: int) -> Any:
        """The next document of one worker. Raises RuntimeError when it has ended, TimeoutError after 90 s."""
        stream = self._workers[rank].stdout
        assert stream is not None
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            line = await stream.readline()
        if not line:
            raise RuntimeError(f"the worker of rank {rank} ended before it had said all")
        return json.loads(line)

    async def hear_all(self) -> list[Any]:
        """The next document of every worker, by rank."""
        return list(await asyncio.gather(*(self.hear(rank) for rank in range(self.world_size))))

    def say_all(self, document: object) -> None:
        """Sends every worker one JSON document, as a line on its standard input."""
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(document).encode() + b"\n")

    async def start(self) -> None:
        """Waits until every worker of `steps` has joined, then starts their common clock."""
        await self.hear_all()
        self.say_all(monotonic() + START_IN_S)

    def agent_pids(self) -> tuple[int, int]:
        return find_agent(self._folder)

    async def close(self) -> None:
        await asyncio.gather(*(_ended(worker) for worker in self._workers))
        shutil.rmtree(self._folder, ignore_errors=True)


async def _ended(worker: Process) -> None:
    if worker.stdin is not None:
        worker.stdin.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_TIMEOUT_S):
            await worker.wait()
            return
    worker.kill()
    await worker.wait()
