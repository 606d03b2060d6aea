"""Where a drill takes place: an etcd server, two nodes with two ranks each, and all that etcd has ever held of them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from drills import content
from drills.options import Options
from drills.ranks import Failed, Rank, Ranks
from drills.registry import Registry
from drills.trainer import RUN, Orders
from instep.coordination.keys import Keys
from instep.coordination.records import Manifest
from instep.etcd import Client
from instep.testing import EtcdServer
from instep.worker.manifest import MANIFEST, verify_manifest

NAMESPACE: Final = "/drills"
TTL_S: Final = 2
STEP_S: Final = 0.004
CATCH_UP_S: Final = 30.0
KEEP: Final = 3


class Stage:
    def __init__(self, options: Options, folder: Path, client: Client, ranks: Ranks) -> None:
        self.options = options
        self.saves = folder / "saves"
        self.ranks = ranks
        self.registry = Registry(Keys(NAMESPACE, RUN), keep=KEEP if options.torch else None)
        self._client = client
        self._read_from = 1
        self._folder = folder

    async def start(self, *, background: bool = False) -> None:
        """All ranks anew, from the newest checkpoint on."""
        await self.ranks.start(lambda rank: self._orders(rank, background))

    def _orders(self, rank: Rank, background: bool) -> Orders:
        return Orders(
            seed=self.options.seed,
            board=str(self._folder / "board"),
            records=str(rank.records),
            folder=str(self.saves),
            step_s=STEP_S,
            background=background,
        )

    async def catch_up(self) -> Registry:
        """The registry with all that has been written up to now. Raises Failed with what was against its rules."""
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
        """A committed checkpoint's files are there as they were committed, and are what was saved of that step."""
        problem = verify_manifest(Path(manifest.path), manifest.digest)
        if problem is not None:
            raise Failed(f"checkpoint {manifest.id} is committed: {problem}")
        if not self.options.torch and content.read(Path(manifest.path)) != self.content(manifest.step):
            raise Failed(f"checkpoint {manifest.id} does not hold what was saved of its step")

    def content(self, step: int) -> dict[str, bytes]:
        return content.content(self.options.seed, step)

    def attempts(self, step: int) -> list[str]:
        """Directories of that step."""
        return sorted(path.name for path in self.saves.glob(f"step-{step}-*"))

    def is_whole(self, step: int) -> bool:
        """Whether the last file of an attempt at that step is written: its commit follows at once."""
        return any((self.saves / name / MANIFEST).exists() for name in self.attempts(step))


@asynccontextmanager
async def stage(options: Options, folder: Path) -> AsyncIterator[Stage]:
    trainer = "drills.torch_trainer" if options.torch else "drills.trainer"
    with EtcdServer(version=options.version) as server:
        environment = {**server.environment(), "INSTEP_NAMESPACE": NAMESPACE, "INSTEP_TTL_S": str(TTL_S)}
        async with Client(server.endpoints) as client, Ranks(folder, trainer, environment) as ranks:
            yield Stage(options, folder, client, ranks)


def new_folder() -> Path:
    """Its path is short enough for the sockets below it."""
    return Path(tempfile.mkdtemp(prefix="instep-drill-", dir="/tmp"))
