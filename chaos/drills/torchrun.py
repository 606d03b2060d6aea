"""torchrun with two ranks on gloo and DataLoader workers gets SIGTERM at any moment: `sigterm` with all of torch.

Every round: both ranks save in one step and leave with exit code 0, the checkpoint is committed and whole, no worker
process is left and no rank has raised; the next round continues after that step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final, Literal, Self

from chaos.drills import rounds
from chaos.drills.testbed import NAMESPACE, POLL_S, RUN, Failed
from chaos.harness.processes import agents_below, runs, send
from chaos.harness.ranks import ROOT, SOURCES
from chaos.harness.records import Record, RecordReader
from chaos.options import DrillOptions, parse_drill
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import Manifest, Pointer
from instep.testing import EtcdServer
from instep.worker.manifest import verify_manifest

NAME: Final = "torchrun"
ROUNDS: Final = 20
RANKS: Final = 2
PATIENCE_S: Final = 90.0
LEAVING_S: Final = 30.0
GONE_S: Final = 10.0
EVERY: Final = 15


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

    def __init__(self, folder: Path, orders: dict[str, Any], environment: dict[str, str]) -> None:
        folder.mkdir()
        self.folder = folder
        self._readers = [RecordReader(folder / f"rank-{rank}.records") for rank in range(RANKS)]
        script = Path(__file__).with_name("torchrun_rank.py")
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={RANKS}", "--local-addr=127.0.0.1"]
        launch += ["--nnodes=1", "--rdzv-backend=etcd3", f"--rdzv-id={RUN}"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*launch, str(script), json.dumps({**orders, "records": str(folder)})],
                env=environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self, event: str) -> list[Record]:
        """What each rank has said of that kind last, when all have."""
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
        """Whatever still runs of it. The ranks have sessions of their own."""
        pids = [said["pid"] for said in self.said("trains")]
        for pid in (*pids, self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.process.wait()


class Testbed:
    def __init__(self, options: DrillOptions, folder: Path, client: Client, environment: dict[str, str]) -> None:
        self.options = options
        self.folder = folder
        self.client = client
        self.environment = environment
        self.launch: Launch | None = None

    def start(self, number: int, notice: Notice) -> Launch:
        orders = {
            "folder": str(self.folder / f"saves-{notice.megabytes}"),
            "megabytes": notice.megabytes,
            "every": EVERY,
            "persistent": notice.persistent,
        }
        environment = {**self.environment, "INSTEP_NAMESPACE": f"{NAMESPACE}/{notice.megabytes}"}
        self.launch = Launch(self.folder / f"round-{number}", orders, environment)
        return self.launch

    async def newest(self, notice: Notice) -> Manifest | None:
        """The newest committed checkpoint, which is whole."""
        keys = Keys(f"{NAMESPACE}/{notice.megabytes}", RUN)
        item = await self.client.get(keys.latest)
        if item is None:
            return None
        found = await self.client.get(keys.checkpoint(Pointer.decode(item.value).id))
        if found is None:
            raise Failed("the pointer names a checkpoint that is not there")
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
        """Every round starts torchrun itself."""

    async def round(self, number: int) -> str:
        notice = Notice.of(self._testbed.options, number)
        before = await self._testbed.newest(notice)
        launch = self._testbed.start(number, notice)
        await launch.until(lambda: launch.said("trains") or launch.process.poll() is not None, "the ranks")
        if not launch.said("trains"):
            raise Failed(f"torchrun ended with {launch.process.returncode}\n{launch.log[-3000:]}")
        expected = 0 if before is None else before.step + 1
        if {said["next"] for said in launch.said("restored")} != {expected}:
            raise Failed(f"the ranks went on with {launch.said('restored')}, not with step {expected}")
        await asyncio.sleep(notice.after_s)
        self._tell(launch, notice)
        began = monotonic()
        await launch.until(lambda: launch.process.poll() is not None, "torchrun to end", LEAVING_S)
        took_s = monotonic() - began
        self._longest_s = max(self._longest_s, took_s)
        last = await self._left(launch, notice)
        ended = f"torchrun with {launch.process.returncode} {took_s:.2f} s later"
        return f"SIGTERM to {notice.target}, {notice.megabytes} MB; both left after step {last}, {ended}"

    async def finish(self) -> str:
        return f"leaving took {self._longest_s:.2f} s at most"

    def _tell(self, launch: Launch, notice: Notice) -> None:
        ranks = [said["pid"] for said in launch.said("trains")]
        if notice.target == "torchrun":
            send([launch.process.pid], signal.SIGTERM)
        elif notice.target == "a rank's group":
            os.killpg(ranks[notice.rank], signal.SIGTERM)
        else:  # as schedulers do that know a job by its control group
            workers = [pid for said in launch.said("trains") for pid in said["workers"]]
            agents = agents_below(self._testbed.folder)
            send([*agents, *workers, launch.process.pid, *ranks], signal.SIGTERM)

    async def _left(self, launch: Launch, notice: Notice) -> int:
        log = launch.log
        if not launch.said("left"):
            raise Failed(f"not all ranks have left in order after SIGTERM to {notice.target}\n{log[-4000:]}")
        if notice.target == "a rank's group" and launch.process.returncode != 0:
            raise Failed(f"torchrun ended with {launch.process.returncode}, so a rank has failed\n{log[-4000:]}")
        if "DataLoader worker" in log:
            raise Failed(f"a DataLoader has lost its workers\n{log[-4000:]}")
        stops = {said["step"] for said in launch.said("stopped")}
        manifest = await self._testbed.newest(notice)
        if len(stops) != 1 or manifest is None or manifest.step + 1 not in stops:
            raise Failed(
                f"the ranks ended before steps {stops}, and {manifest and manifest.id} is the newest checkpoint"
            )
        left_behind = [pid for said in launch.said("trains") for pid in (said["pid"], *said["workers"])]
        await launch.until(lambda: not any(runs(pid) for pid in left_behind), "the workers to be gone", GONE_S)
        return manifest.step


@asynccontextmanager
async def testbed(options: DrillOptions, folder: Path) -> AsyncIterator[Testbed]:
    with EtcdServer(version=options.version) as server:
        node = folder / "node"
        node.mkdir(mode=0o700)
        environment = {
            **os.environ,
            **server.environment(),
            "INSTEP_RUNTIME_DIR": str(node),
            "INSTEP_TTL_S": "2",
            "PYTHONPATH": os.pathsep.join(map(str, SOURCES)),
            "OMP_NUM_THREADS": "1",
        }
        async with Client(server.endpoints) as client:
            place = Testbed(options, folder, client, environment)
            try:
                yield place
            finally:
                if place.launch is not None:
                    place.launch.close()


def main(arguments: Sequence[str]) -> int:
    options = parse_drill(NAME, __doc__ or "", arguments, rounds=ROUNDS)
    return asyncio.run(rounds.perform(options, lambda folder: testbed(options, folder), Drill))
