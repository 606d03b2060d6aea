"""The two backends that are compared, and their common settings."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext

from chaos.harness.processes import listens

from benchmarks.workers.rendezvous_agent import Parameters
from instep.etcd_server.ports import free_ports
from instep.testing import EtcdServer

HOST = "127.0.0.1"
KEEP_ALIVE_S = 1
KEEP_ALIVE_ATTEMPTS = 3
LAST_CALL_S = 1
OPTIONS: Mapping[str, int] = {
    "keep_alive_interval": KEEP_ALIVE_S,
    "keep_alive_max_attempt": KEEP_ALIVE_ATTEMPTS,
    "last_call_timeout": LAST_CALL_S,
    "join_timeout": 60,
}
ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "RES_OPTIONS": "timeout:1 attempts:1",  # torch's stores look up the name of each address they meet, 10 s at most
}
STORE_LIMIT_S = 30.0
LOOK_S = 0.005
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Place:
    """The rendezvous of one run, separate from every other run."""

    backend: str
    endpoint: str
    run_id: str

    def arguments(self, nodes: str) -> list[str]:
        """The arguments of torchrun."""
        return [
            f"--nnodes={nodes}",
            "--nproc-per-node=1",
            f"--rdzv-backend={self.backend}",
            f"--rdzv-endpoint={self.endpoint}",
            f"--rdzv-id={self.run_id}",
            "--rdzv-conf=" + ",".join(f"{name}={value}" for name, value in OPTIONS.items()),
            f"--local-addr={HOST}",
            "--max-restarts=1000",
        ]

    def parameters(self, nodes: int) -> Parameters:
        """The parameters that torchrun derives from such arguments, for exactly `nodes` nodes."""
        return {
            "backend": self.backend,
            "endpoint": self.endpoint,
            "run_id": self.run_id,
            "min_nodes": nodes,
            "max_nodes": nodes,
            "local_addr": HOST,
            **{name: str(value) for name, value in OPTIONS.items()},
        }

    async def hosted(self) -> None:
        """Waits until the first agent hosts the store, if an agent does: the next ones then find it at once.

        Raises TimeoutError after 30 s.
        """
        async with asyncio.timeout(STORE_LIMIT_S):
            while self._awaits_a_host:  # noqa: ASYNC110  # no event reports the port
                await asyncio.sleep(LOOK_S)

    @property
    def _awaits_a_host(self) -> bool:
        return self.backend == "c10d" and not listens(int(self.endpoint.rpartition(":")[2]))


@dataclass(frozen=True, slots=True)
class Backend:
    """`c10d`, whose store is hosted by an agent, or `etcd3`, with a server."""

    name: str
    server: EtcdServer | None = None

    def place(self) -> Place:
        if self.server is None:
            (port,) = free_ports(1, HOST)
            endpoint = f"{HOST}:{port}"
        else:
            endpoint = self.server.endpoint.removeprefix("http://")
        return Place(self.name, endpoint, f"bench-{os.getpid()}-{next(_numbers)}")


def with_torch_loaded() -> ForkServerContext:
    """Creates processes that have torch imported, which otherwise takes 2 s of CPU per torchrun."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.distributed.run", "benchmarks.workers.rendezvous_agent"])
    return context
