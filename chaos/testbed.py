"""All parts of one session: the cluster, the nodes, the ranks, and the clients beside them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from chaos.election_clients import ElectionClient
from chaos.fault_plan import NODES
from chaos.harness.link import Link
from chaos.injector import FaultInjector
from chaos.operator import Operator, keys_of
from chaos.prober import Prober
from chaos.recording import HistoryReader, LongWatch, compact
from chaos.register_clients import RegisterClient
from chaos.run_processes import make_nodes, make_ranks
from chaos.servers import Servers
from chaos.stall_monitor import StallMonitor
from chaos.timed_calls import TimedCalls
from instep.errors import EtcdError
from instep.etcd import Client
from instep.protocol.records import Leader
from instep.testing import EtcdCluster
from instep.testing.checkers import History

NAMESPACE: Final = "/chaos"
PREFIX: Final = f"{NAMESPACE}/"
CLIENT_TIMEOUT_S: Final = 5.0
REGISTER_CLIENTS: Final = 3
REGISTER_PAUSE_S: Final = 0.4


class Testbed:
    """What a session needs, on a cluster that runs. Leaving its `async with` block ends all of it."""

    def __init__(self, folder: Path, cluster: EtcdCluster, seed: int) -> None:
        self.folder = folder
        self.version = cluster.version
        self._cluster = cluster
        self._stack = contextlib.AsyncExitStack()
        self.clients: list[Client] = []
        self.calls = TimedCalls()
        self.keys = keys_of(NAMESPACE)
        self.servers = Servers(cluster)
        self.nodes = make_nodes(folder, cluster.endpoints, NAMESPACE)
        self.ranks = make_ranks(folder, self.nodes)
        self.watcher = LongWatch(self.client(), PREFIX, folder / "watched.jsonl")
        self.reference = HistoryReader(cluster.endpoints, PREFIX, folder / "reference.jsonl", self.calls)
        self.operator = Operator(self.client(), self.keys, self.calls, seed, folder / "commands.jsonl")
        self.prober = Prober(self.client(), f"{PREFIX}beat", self.calls)
        self.history = History(folder / "calls.jsonl")
        self.registers = [self._register_client(number, seed) for number in range(REGISTER_CLIENTS)]
        self._links = [Link(node.endpoints) for node in self.nodes]
        self.election_clients = [self._election_client(number, seed) for number in range(NODES)]
        self.injector = FaultInjector(
            self.servers,
            self.nodes,
            self.ranks,
            compact=self._compact,
            link_of_leader=self._link_of_leading_election_client,
            leading=self._leading,
            journal=folder / "done.jsonl",
        )
        self.monitor = StallMonitor(self.ranks, self.nodes, self.injector)

    def __repr__(self) -> str:
        return f"Testbed({self._cluster!r}, {self.ranks!r})"

    def client(self, endpoints: Sequence[str] = ()) -> Client:
        """One more client beside the run, closed with the testbed."""
        client = Client(endpoints or self._cluster.endpoints, timeout_s=CLIENT_TIMEOUT_S)
        self._stack.push_async_callback(client.close)
        self.clients.append(client)
        return client

    def _register_client(self, number: int, seed: int) -> RegisterClient:
        return RegisterClient(
            f"client-{number}",
            self.client(),
            f"{PREFIX}registers/",
            self.history,
            self.calls,
            seed=seed * 1000 + number,
            pause_s=REGISTER_PAUSE_S,
        )

    def _election_client(self, number: int, seed: int) -> ElectionClient:
        return ElectionClient(
            f"election-client-{number}",
            self.client(self._links[number].endpoints),
            f"{PREFIX}election-clients/",
            self.history,
            self.calls,
            seed=seed * 1000 + 500 + number,
        )

    def _link_of_leading_election_client(self) -> Link | None:
        found = zip(self.election_clients, self._links, strict=True)
        return next((link for client, link in found if client.leads), None)

    async def _leading(self) -> int | None:
        try:
            found = await self.clients[0].get(self.keys.leader)
        except EtcdError:
            return None
        leader = Leader.decode_or_none(found.value) if found is not None else None
        return leader.rank if leader is not None else None

    async def keep_evidence(self) -> None:
        """After a failure: keeps the rest of the history and the members' logs, to find its cause."""
        with contextlib.suppress(EtcdError, TimeoutError):
            await self.reference.extend()
        for member in self._cluster.members:
            shutil.copy(member.log, self.folder / f"etcd-{member.name}.log")

    def flush(self) -> None:
        """Closes the recordings; then their files can be read."""
        self.watcher.close()
        self.reference.close()
        self.history.close()

    async def _compact(self) -> bool:
        return await compact(self.clients[0], self.reference, self.watcher, self.calls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ranks.close()
        for link in self._links:
            link.close()
        for node in self.nodes:
            node.close()
        await self._stack.aclose()
        self.flush()
        self.servers.close()
