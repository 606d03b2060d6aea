"""Workers of one run: processes that run a script of `benchmarks.workers`, on nodes with a runtime folder each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

from chaos.harness.node import ROOT, Node

from instep.settings import DEFAULT_TTL_S
from instep.testing import EtcdServer

RUN = "bench"
ANSWER_TIMEOUT_S = 90.0
END_TIMEOUT_S = 10.0
START_IN_S = 0.1


class Worker:
    """One process of a rank. It prints one JSON document per line; its errors appear on our stderr."""

    def __init__(self, rank: int, node: Node, process: Process) -> None:
        self.rank = rank
        self.node = node
        self.process = process

    async def documents(self) -> AsyncIterator[Any]:
        """All documents until the process ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            yield json.loads(line)

    async def hear(self) -> Any:
        """The next document. Raises RuntimeError if the process has ended, TimeoutError after 90 s."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            async for document in self.documents():
                return document
        raise RuntimeError(f"the worker of rank {self.rank} ended before its last document")

    def say(self, document: object) -> None:
        """Sends one JSON document, as a line on its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(document).encode() + b"\n")

    async def end(self) -> None:
        """Closes its standard input; kills it if it still runs after 10 s."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self.process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class Fleet:
    """All workers of a run on this machine, `per_node` on each of `nodes` nodes. Leaving ends them and their agents."""

    def __init__(
        self,
        server: EtcdServer,
        script: str,
        *arguments: str,
        per_node: int,
        nodes: int = 1,
        ttl_s: int = DEFAULT_TTL_S,
    ) -> None:
        self.world_size = nodes * per_node
        self.workers: dict[int, Worker] = {}
        self._command = [sys.executable, "-m", f"benchmarks.workers.{script}", *arguments]
        self._per_node = per_node
        self._folder = Path(tempfile.mkdtemp(prefix="instep-bench-"))
        settings = {**server.environment(), "OMP_NUM_THREADS": "1"}
        self.nodes = [Node(str(number), self._folder, settings, ttl_s=ttl_s) for number in range(nodes)]

    async def __aenter__(self) -> Self:
        try:
            for rank in range(self.world_size):
                await self.start(rank)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self, rank: int) -> Worker:
        """Starts the process of a rank; also when an earlier one has ended."""
        node = self.nodes[rank // self._per_node]
        environment = {**node.environment(), "RANK": str(rank), "WORLD_SIZE": str(self.world_size)}
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, env=environment, cwd=ROOT
        )
        self.workers[rank] = Worker(rank, node, process)
        return self.workers[rank]

    async def hear_all(self) -> list[Any]:
        """The next document of every worker, by rank."""
        return list(await asyncio.gather(*(self.workers[rank].hear() for rank in range(self.world_size))))

    async def start_clock(self) -> None:
        """Waits until every worker of `steps` has joined, then starts their common clock."""
        await self.hear_all()
        start = monotonic() + START_IN_S
        for worker in self.workers.values():
            worker.say(start)

    async def close(self) -> None:
        await asyncio.gather(*(worker.end() for worker in self.workers.values()))
        for node in self.nodes:
            node.close()
        shutil.rmtree(self._folder, ignore_errors=True)
