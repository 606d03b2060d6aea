"""torchrun with two ranks on gloo and DataLoader workers gets SIGTERM at a random moment.

Every round: both ranks save in the same step and leave with exit code 0, the checkpoint is committed and complete, no
worker process is left and no rank has raised; the next round continues after that step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal, Self

from chaos.drills.rounds import run_drill
from chaos.drills.testbed import NAMESPACE, POLL_S, RUN, TTL_S
from chaos.harness.fork_server import ForkServer
from chaos.harness.node import Node
from chaos.harness.processes import agents_below, runs, send
from chaos.harness.records import Record, RecordReader
from chaos.options import DrillOptions, Failed
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import Manifest, Pointer
from instep.testing import EtcdServer
from instep.worker.manifest import verify_manifest

NAME: Final = "torchrun"
ROUNDS: Final = 10
RANKS: Final = 2
PATIENCE_S: Final = 90.0
LEAVING_S: Final = 30.0
GONE_S: Final = 10.0
EVERY: Final = 15
TORCHRUN: Final = "torch.distributed.run:main"
"""It is forked from a process that has imported torch, which takes seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Which processes get SIGTERM in a round, and when."""

    target: Literal["torchrun", "a rank's group", "everything"]
    rank: int
    after_s: float
    megabytes: int
    persistent: bool

    @classmethod
    def of(cls, options: DrillOptions, number: int) -> Self:
        dice = random.Random(f"{options.seed} {NAME} {number}")
        return cls(
            target=dice.choices(("torchrun", "a rank's group", "everything"), (3, 3, 2))[0],
            rank=dice.randrange(RANKS),
            after_s=dice.uniform(0, 1.5),
            megabytes=dice.choice((1, 8, 64)),
            persistent=dice.random() < 0.5,
        )


class Launch:
    """One start of torchrun."""

    def __init__(self, folder: Path, spec: dict[str, Any], environment: dict[str, str], forks: ForkServer) -> None:
        folder.mkdir()
        self.folder = folder
        self._readers = [RecordReader(folder / f"rank-{rank}.records") for rank in range(RANKS)]
        script = Path(__file__).with_name("torchrun_rank.py")
        arguments = [f"--nproc-per-node={RANKS}", "--local-addr=127.0.0.1", "--nnodes=1"]
        arguments += ["--rdzv-backend=etcd3", f"--rdzv-id={RUN}"]
        arguments += [str(script), json.dumps({**spec, "records": str(folder)})]
        self.process = forks.start(TORCHRUN, arguments, environment, log=folder / "log", new_session=True)

    def said(self, event: str) -> list[Record]:
        """The last record of that event of each rank; empty until all ranks have one."""
        found: list[Record] = []
        for reader in self._readers:
            found += reader.select(event)[-1:]
        return found if len(found) == RANKS else []

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    async def until(self, found: Callable[[], Any], what: str, timeout_s: float = PATIENCE_S) -> None:
        deadline = monotonic() + timeout_s
        while not found():
            if monotonic() > deadline:
                raise Failed(f"not seen in {timeout_s:g} s: {what}\n{self.log[-3000:]}")
            await asyncio.sleep(POLL_S)

    def close(self) -> None:
        """Kills all processes that still run. Each rank has its own session."""
        pids = [said["pid"] for said in self.said("trains")]
        for pid in (*pids, self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.process.wait()


class Testbed:
    def __init__(
        self, options: DrillOptions, folder: Path, client: Client, environment: dict[str, str], forks: ForkServer
    ) -> None:
        self.options = options
        self.folder = folder
        self.client = client
        self.environment = environment
        self._forks = forks
        self.launch: Launch | None = None

    def start(self, number: int, notice: Notice) -> Launch:
        spec = {
            "folder": str(self.folder / f"saves-{notice.megabytes}"),
            "megabytes": notice.megabytes,
            "every": EVERY,
            "persistent": notice.persistent,
        }
        environment = {**self.environment, "INSTEP_NAMESPACE": f"{NAMESPACE}/{notice.megabytes}"}
        self.launch = Launch(self.folder / f"round-{number}", spec, environment, self._forks)
        return self.launch

    async def newest(self, notice: Notice) -> Manifest | None:
        """The newest committed checkpoint. Raises Failed if it is damaged."""
        keys = Keys(f"{NAMESPACE}/{notice.megabytes}", RUN)
        item = await self.client.get(keys.latest)
        if item is None:
            return None
        found = await self.client.get(keys.checkpoint(Pointer.decode(item.value).id))
        if found is None:
            raise Failed("the pointer names a checkpoint that does not exist")
        manifest = Manifest.decode(found.value)
        problem = verify_manifest(Path(manifest.path), manifest.digest)
        if problem is not None:
            raise Failed(f"checkpoint {manifest.id} is committed: {problem}")
        return manifest


class Drill:
    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self._longest_s = 0.0

    async def begin(self) -> None:
        """Nothing: each round starts torchrun."""

    async def round(self, number: int) -> str:
        notice = Notice.of(self._testbed.options, number)
        before = await self._testbed.newest(notice)
        launch = self._testbed.start(number, notice)
        await launch.until(lambda: launch.said("trains") or launch.process.poll() is not None, "the ranks")
        if not launch.said("trains"):
            raise Failed(f"torchrun ended with {launch.process.returncode}\n{launch.log[-3000:]}")
        expected = 0 if before is None else before.step + 1
        if {said["next"] for said in launch.said("restored")} != {expected}:
            raise Failed(f"the ranks resumed with {launch.said('restored')}, not at step {expected}")
        await asyncio.sleep(notice.after_s)
        self._signal(launch, notice)
        began = monotonic()
        await launch.until(lambda: launch.process.poll() is not None, "torchrun to end", LEAVING_S)
        took_s = monotonic() - began
        self._longest_s = max(self._longest_s, took_s)
        last = await self._check_left(launch, notice)
        ended = f"torchrun with {launch.process.returncode} {took_s:.2f} s later"
        return f"SIGTERM to {notice.target}, {notice.megabytes} MB; both left after step {last}, {ended}"

    async def finish(self) -> str:
        return f"leaving took {self._longest_s:.2f} s at most"

    def _signal(self, launch: Launch, notice: Notice) -> None:
        ranks = [said["pid"] for said in launch.said("trains")]
        if notice.target == "torchrun":
            send([launch.process.pid], signal.SIGTERM)
        elif notice.target == "a rank's group":
            os.killpg(ranks[notice.rank], signal.SIGTERM)
        else:  # as schedulers that end all processes of a control group
            workers = [pid for said in launch.said("trains") for pid in said["workers"]]
            agents = agents_below(self._testbed.folder)
            send([*agents, *workers, launch.process.pid, *ranks], signal.SIGTERM)

    async def _check_left(self, launch: Launch, notice: Notice) -> int:
        log = launch.log
        if not launch.said("left"):
            raise Failed(f"not all ranks left cleanly after SIGTERM to {notice.target}\n{log[-4000:]}")
        if notice.target == "a rank's group" and launch.process.returncode != 0:
            raise Failed(f"torchrun ended with {launch.process.returncode}, so a rank has failed\n{log[-4000:]}")
        if "DataLoader worker" in log:
            raise Failed(f"a DataLoader has lost its workers\n{log[-4000:]}")
        stops = {said["step"] for said in launch.said("stopped")}
        manifest = await self._testbed.newest(notice)
        if len(stops) != 1 or manifest is None or manifest.step + 1 not in stops:
            raise Failed(
                f"the ranks ended before steps {stops}, but {manifest and manifest.id} is the newest checkpoint"
            )
        left_behind = [pid for said in launch.said("trains") for pid in (said["pid"], *said["workers"])]
        await launch.until(lambda: not any(runs(pid) for pid in left_behind), "the workers to be gone", GONE_S)
        return manifest.step


@asynccontextmanager
async def testbed(options: DrillOptions, folder: Path) -> AsyncIterator[Testbed]:
    with EtcdServer(version=options.version) as server:
        node = Node("node", folder, {**server.environment(), "OMP_NUM_THREADS": "1"}, ttl_s=TTL_S)
        forks = ForkServer()
        async with Client(server.endpoints) as client:
            place = Testbed(options, folder, client, node.environment(), forks)
            try:
                yield place
            finally:
                if place.launch is not None:
                    place.launch.close()
                forks.close()


def main(arguments: Sequence[str]) -> int:
    return run_drill(NAME, __doc__, ROUNDS, arguments, testbed, Drill)
