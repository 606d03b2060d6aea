"""What a drill runs on: an etcd server, two nodes with two ranks each, and the history of their keys."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from chaos import content
from chaos.checks.registry import RegistryHistory
from chaos.harness.fork_server import ForkServer
from chaos.harness.node import Node
from chaos.harness.processes import send
from chaos.harness.ranks import SHARED, Rank, Ranks, fork_from
from chaos.harness.records import Record
from chaos.harness.tasks import until
from chaos.options import DrillOptions, Failed
from chaos.trainer import TrainerSpec
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import Manifest
from instep.testing import EtcdServer
from instep.worker.manifest import MANIFEST, verify_manifest

RUN: Final = "drill"
NAMESPACE: Final = "/drills"
NODES: Final = "ab"
RANKS_PER_NODE: Final = 2
WORLD_SIZE: Final = len(NODES) * RANKS_PER_NODE
TTL_S: Final = 2
STEP_S: Final = 0.004
KEEP: Final = 3
POLL_S: Final = 0.002
PATIENCE_S: Final = 60.0
CATCH_UP_S: Final = 30.0
LEAVING_S: Final = 15.0
LAST_STEPS: Final = 20

T = TypeVar("T")


class Testbed:
    def __init__(self, options: DrillOptions, folder: Path, client: Client, ranks: Ranks) -> None:
        self.options = options
        self.saves = folder / "saves"
        self.ranks = ranks
        self.registry = RegistryHistory(Keys(NAMESPACE, RUN), steps_rise=True, keep=KEEP if options.torch else None)
        self._client = client
        self._read_from = 1

    # -- the ranks ----------------------------------------------------------------------------------------------------

    async def start(self, *, background: bool = False) -> None:
        """Starts all ranks; they resume from the newest checkpoint."""
        self.ranks.start_all(background=background)

    async def until(self, found: Callable[[], T], what: str, *, timeout_s: float = PATIENCE_S, dead: bool = False) -> T:
        """The first true value of `found`. Raises Failed when there is none in time, or when a rank ends first, unless
        ranks may be `dead`."""
        deadline = monotonic() + timeout_s
        while not (value := found()):
            ended = [rank for rank in self.ranks.all if rank.code is not None]
            if ended and not dead:
                await asyncio.sleep(POLL_S)
                if value := found():
                    break
                rank = ended[0]
                raise Failed(f"waited for {what}: {rank} ended with {rank.code}:\n{rank.log_tail()}")
            if monotonic() > deadline:
                tails = "\n".join(f"{rank}: {rank.log_tail()}" for rank in self.ranks.all)
                raise Failed(f"not seen in {timeout_s:g} s: {what}\n{tails}")
            await asyncio.sleep(POLL_S)
        return value

    async def all_said(
        self, event: str, *, timeout_s: float = PATIENCE_S, dead: bool = False, **facts: Any
    ) -> list[Record]:
        """The first record of that event of each rank, by rank."""

        def found() -> list[list[Record]]:
            said = [rank.said(event, **facts) for rank in self.ranks.all]
            return said if all(said) else []

        return [said[0] for said in await self.until(found, f"{event} of all ranks", timeout_s=timeout_s, dead=dead)]

    def begun_saves(self) -> list[tuple[Rank, Record]]:
        """The saves that the present processes have begun, in order, each with its rank."""
        begun = [(rank, said) for rank in self.ranks.all for said in rank.said("opened")]
        return sorted(begun, key=lambda item: float(item[1]["at"]))

    def all_gone(self) -> bool:
        return all(rank.code is not None for rank in self.ranks.all)

    async def kill_all(self) -> None:
        """Kills all ranks that still run, at once."""
        self.ranks.signal(signal.SIGKILL)
        await self.until(self.all_gone, "the ranks to be gone", dead=True)

    async def finish(self) -> None:
        """Ends the run: all ranks leave after the same step, with exit code 0."""
        shared = self.ranks.shared
        shared.end_after(shared.highest_passed() + LAST_STEPS)
        await self.all_said("done", dead=True)
        await self.until(self.all_gone, "the ranks to be gone", dead=True)
        codes = [rank.code for rank in self.ranks.all]
        if any(codes):
            raise Failed(f"the ranks ended with {codes} instead of 0")

    # -- the checkpoints ----------------------------------------------------------------------------------------------

    async def catch_up(self) -> RegistryHistory:
        """The registry with everything written up to now. Raises Failed if a write broke its rules."""
        mark = await self._client.put(f"{NAMESPACE}/.mark", str(self._read_from))
        async with asyncio.timeout(CATCH_UP_S), self._client.watch(NAMESPACE, start_revision=self._read_from) as watch:
            async for batch in watch:
                self.registry.feed(batch.events)
                self._read_from = batch.revision + 1
                if batch.revision >= mark:
                    break
        if self.registry.problems:
            found, self.registry.problems = self.registry.problems, []
            raise Failed("; ".join(found))
        return self.registry

    def check_whole(self, manifest: Manifest) -> None:
        """Checks that the files of a committed checkpoint are unchanged and have the content of its step."""
        problem = verify_manifest(Path(manifest.path), manifest.digest)
        if problem is not None:
            raise Failed(f"checkpoint {manifest.id} is committed: {problem}")
        if not self.options.torch and content.read(Path(manifest.path)) != self.content(manifest.step):
            raise Failed(f"checkpoint {manifest.id} does not have the content of its step")

    def content(self, step: int) -> dict[str, bytes]:
        return content.content(self.options.seed, step)

    def attempts(self, step: int) -> list[str]:
        """The directories of that step."""
        return sorted(path.name for path in self.saves.glob(f"step-{step}-*"))

    def is_whole(self, step: int) -> bool:
        """Whether the last file of an attempt at that step is written: the commit follows at once."""
        return any((self.saves / name / MANIFEST).exists() for name in self.attempts(step))


@asynccontextmanager
async def testbed(options: DrillOptions, folder: Path) -> AsyncIterator[Testbed]:
    """After a drill that held, the agents leave with their ranks. Raises Failed if they do not."""
    module, saver = ("chaos.torch_saver", "TorchSaver") if options.torch else ("chaos.savers", "ContentSaver")
    spec = TrainerSpec(
        run=RUN,
        shared=str(folder / SHARED),
        records="",
        folder=str(folder / "saves"),
        saver=f"{module}:{saver}",
        step_s=STEP_S,
        patience_s=PATIENCE_S,
        seed=options.seed,
    )
    forks = ForkServer(module)
    with EtcdServer(version=options.version) as server:
        settings = {**server.environment(), "INSTEP_NAMESPACE": NAMESPACE}
        nodes = [Node(name, folder, settings, ttl_s=TTL_S) for name in NODES]
        ranks = Ranks(folder, nodes, spec, per_node=RANKS_PER_NODE, launch=fork_from(forks))
        held = False
        try:
            async with Client(server.endpoints) as client:
                yield Testbed(options, folder, client, ranks)
            held = True
        finally:
            ranks.close()
            forks.close()
            await _end_agents(nodes, patience_s=LEAVING_S if held else 0.0)


async def _end_agents(nodes: list[Node], *, patience_s: float) -> None:
    await until(lambda: not any(node.agents() for node in nodes), patience_s)
    agents = [pid for node in nodes for pid in node.agents()]
    send(agents, signal.SIGKILL)
    if agents and patience_s:
        raise Failed(f"the agents {agents} still run {patience_s:g} s after their ranks")


def new_folder() -> Path:
    """Its path is short enough for the sockets in it."""
    return Path(tempfile.mkdtemp(prefix="instep-drill-", dir="/tmp"))
