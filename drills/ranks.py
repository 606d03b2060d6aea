"""The ranks of one run, on two nodes: started together, watched by what they write down, and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from chaos.board import NO_STEP, Board
from chaos.processes import agents_below, send

import instep
from drills.records import Reader, Said
from drills.trainer import Orders

ROOT: Final = Path(__file__).resolve().parent.parent
NODES: Final = "aabb"
"""The node of each rank."""
POLL_S: Final = 0.002
PATIENCE_S: Final = 60.0
LEAVING_S: Final = 15.0
LAST_STEPS: Final = 20
TAIL_BYTES: Final = 1500

T = TypeVar("T")


class Failed(Exception):
    """A round went otherwise than it must."""


class Rank:
    """One process of a rank, from its start to its end."""

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.node = NODES[number]
        self.records = folder / f"rank-{number}.records"
        self.log = folder / f"rank-{number}.log"
        self.pid = 0
        self.code: int | None = None
        self._reader = Reader(self.records)

    def __repr__(self) -> str:
        return f"rank {self.number} on node {self.node}"

    def said(self, event: str, **facts: object) -> list[Said]:
        self._reader.refresh()
        return [
            said
            for said in self._reader.said
            if said["event"] == event and all(said.get(name) == fact for name, fact in facts.items())
        ]

    def tail(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        return "it has said nothing"


class Ranks:
    """Entered, it can start all ranks of a life, one life after the other; left, nothing of them runs."""

    def __init__(self, folder: Path, trainer: str, environment: dict[str, str]) -> None:
        self.all: list[Rank] = []
        self._folder = folder
        self._trainer = trainer
        self._environment = environment
        self._lives = 0
        self._nursery: Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.board = Board(folder / "board", len(NODES), create=True)

    async def __aenter__(self) -> Self:
        for node in set(NODES):
            self.folder_of(node).mkdir(mode=0o700)
        self._nursery = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "drills.nursery",
            self._trainer,
            stdin=PIPE,
            stdout=PIPE,
            cwd=ROOT,
            env={
                **os.environ,
                **self._environment,
                "PYTHONPATH": os.pathsep.join([str(Path(instep.__file__).parent.parent), str(ROOT)]),
                "OMP_NUM_THREADS": "1",  # a process with threads must not be forked
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        self._reading = asyncio.create_task(self._read(self._nursery))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._ready.wait()
        except BaseException:
            await self._close(0.0)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        agents = await self._close(LEAVING_S if kind is None else 0.0)
        if agents and kind is None:
            raise Failed(f"the agents {agents} were still there {LEAVING_S:g} s after their ranks")

    def folder_of(self, node: str) -> Path:
        return self._folder / node

    def agents_of(self, node: str) -> list[int]:
        """A guardian before its agent."""
        return agents_below(self.folder_of(node))

    def of_node(self, node: str) -> list[Rank]:
        return [rank for rank in self.all if rank.node == node]

    async def start(self, orders: Callable[[Rank], Orders]) -> None:
        """Another life: all ranks anew."""
        assert all(rank.code is not None for rank in self.all), "a life begins when the one before has ended"
        self._lives += 1
        folder = self._folder / f"life-{self._lives}"
        folder.mkdir()
        self.board.begin_at(0)
        self.board.end_after(NO_STEP)
        self.all = [Rank(number, folder) for number in range(len(NODES))]
        assert self._nursery is not None
        assert self._nursery.stdin is not None
        for rank in self.all:
            order = {
                "name": str(rank.number),
                "arguments": [orders(rank).as_json],
                "log": str(rank.log),
                "environment": {
                    "INSTEP_RUNTIME_DIR": str(self.folder_of(rank.node)),
                    "RANK": str(rank.number),
                    "WORLD_SIZE": str(len(NODES)),
                },
            }
            self._nursery.stdin.write(json.dumps(order).encode() + b"\n")
        await self.until(lambda: all(rank.pid for rank in self.all), "all ranks to be started")

    async def end(self) -> None:
        """All that still run, at once."""
        self.kill(*self.all)
        await self.until(lambda: all(rank.code is not None for rank in self.all), "the ranks to be gone", dead=True)

    async def finish(self) -> None:
        """In order, all after the same step, with exit code 0."""
        self.board.end_after(self.board.highest_passed() + LAST_STEPS)
        await self.all_said("done", dead=True)
        await self.until(lambda: all(rank.code is not None for rank in self.all), "the ranks to be gone", dead=True)
        codes = [rank.code for rank in self.all]
        if any(codes):
            raise Failed(f"the ranks were to leave in order and ended with {codes}")

    def kill(self, *ranks: Rank, number: signal.Signals = signal.SIGKILL) -> None:
        send([rank.pid for rank in ranks if rank.pid and rank.code is None], number)

    async def until(self, found: Callable[[], T], what: str, *, timeout_s: float = PATIENCE_S, dead: bool = False) -> T:
        """What `found` returns first that is true. Raises Failed when that is not in time, or, unless the ranks may be
        `dead`, when one of them ends meanwhile."""
        deadline = monotonic() + timeout_s
        while not (value := found()):
            ended = [rank for rank in self.all if rank.code is not None]
            if ended and not dead:
                await asyncio.sleep(POLL_S)
                if value := found():
                    break
                rank = ended[0]
                raise Failed(f"waited for {what}: {rank} ended with {rank.code}:\n{rank.tail()}")
            if monotonic() > deadline:
                tails = "\n".join(f"{rank}: {rank.tail()}" for rank in self.all)
                raise Failed(f"not seen in {timeout_s:g} s: {what}\n{tails}")
            await asyncio.sleep(POLL_S)
        return value

    async def all_said(
        self, event: str, *, timeout_s: float = PATIENCE_S, dead: bool = False, **facts: Any
    ) -> list[Said]:
        """By rank, what each said first of that kind."""
        heard = f"{event} of all ranks"

        def found() -> list[list[Said]]:
            said = [rank.said(event, **facts) for rank in self.all]
            return said if all(said) else []

        return [said[0] for said in await self.until(found, heard, timeout_s=timeout_s, dead=dead)]

    def saves(self) -> list[tuple[Rank, Said]]:
        """Those begun in this life, in order, each with the rank that makes it."""
        begun = [(rank, said) for rank in self.all for said in rank.said("opened")]
        return sorted(begun, key=lambda item: float(item[1]["at"]))

    async def _read(self, nursery: Process) -> None:
        assert nursery.stdout is not None
        async for line in nursery.stdout:
            news = json.loads(line)
            if "ready" in news:
                self._ready.set()
            elif "name" in news:
                self.all[int(news["name"])].pid = news["pid"]
            else:
                for rank in self.all:
                    if rank.pid == news["pid"]:
                        rank.code = news["code"]

    async def _close(self, patience_s: float) -> list[int]:
        """The nursery's end is that of its ranks, and theirs is that of their agents: returns those that had to be
        killed."""
        if self._nursery is not None and self._reading is not None:
            assert self._nursery.stdin is not None
            self._nursery.stdin.close()
            await self._nursery.wait()
            await self._reading
        deadline = monotonic() + patience_s
        agents = self._all_agents()
        while agents and monotonic() < deadline:
            await asyncio.sleep(0.05)
            agents = self._all_agents()
        send(agents, signal.SIGKILL)
        self.board.close()
        return agents

    def _all_agents(self) -> list[int]:
        return [pid for node in set(NODES) for pid in self.agents_of(node)]
