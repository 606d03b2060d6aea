"""Handlers of one run, each in a thread as if in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters

from async_support import run
from instep.etcd import Client
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Registration, Round
from instep.torch._rendezvous.handler import create_handler

T = TypeVar("T")

LIMIT_S = 30.0
RUN = "ported"
QUICK = {"join_timeout": "20", "last_call_timeout": "0.2", "keep_alive_interval": "1", "keep_alive_max_attempt": "2"}


def parameters(
    endpoint: str, namespace: str, least: int, most: int, local_addr: str = "127.0.0.1", **conf: str
) -> RendezvousParameters:
    conf = {**QUICK, "namespace": namespace, **conf}
    return RendezvousParameters("etcd3", endpoint, RUN, least, most, local_addr=local_addr, **conf)


class Agent:
    def __init__(self, params: RendezvousParameters) -> None:
        self.handler = create_handler(params)
        self._thread = ThreadPoolExecutor(1)

    def joins(self) -> Future[RendezvousInfo]:
        return self._thread.submit(self.handler.next_rendezvous)

    def end(self) -> None:
        self.handler.shutdown()
        self._thread.shutdown(wait=False)


class Agents:
    """Those of one run, and what etcd holds of it."""

    def __init__(self, endpoint: str, namespace: str) -> None:
        self.endpoint = endpoint
        self.keys = RendezvousKeys(namespace, RUN)
        self._made: list[Agent] = []

    def one(self, least: int, most: int, *, endpoint: str = "", **conf: str) -> Agent:
        self._made.append(Agent(parameters(endpoint or self.endpoint, self.keys.namespace, least, most, **conf)))
        return self._made[-1]

    def in_a_round(self, count: int, least: int, most: int, **conf: str) -> tuple[list[Agent], list[RendezvousInfo]]:
        """So many agents that have formed a round, and what each was given; those of rank 0 first."""
        made = [self.one(least, most, **conf) for _ in range(count)]
        given = together(*made)
        order = sorted(range(count), key=lambda index: given[index].rank)
        return [made[index] for index in order], [given[index] for index in order]

    def round(self) -> Round | None:
        found = self._look(lambda client: client.get(self.keys.round))
        return Round.decode(found.value) if found is not None else None

    def registered(self) -> list[Registration]:
        listing = self._look(lambda client: client.range(self.keys.nodes))
        return [Registration.decode(item.value) for item in listing.kvs]

    def asking(self) -> int:
        return sum(one.asks for one in self.registered())

    def end(self) -> None:
        for agent in self._made:
            agent.end()

    def _look(self, what: Callable[[Client], Awaitable[T]]) -> T:
        async def main() -> T:
            async with Client([self.endpoint]) as client:
                return await what(client)

        return run(main())


def together(*agents: Agent) -> list[RendezvousInfo]:
    """All of them join; what each was given."""
    return [joining.result(LIMIT_S) for joining in [agent.joins() for agent in agents]]


def bootstrap_of(info: RendezvousInfo) -> tuple[str, int]:
    """Where torchrun tells the workers to meet."""
    found = info.bootstrap_store_info
    assert found is not None
    return found.master_addr, found.master_port


def until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)  # nothing announces what a condition looks at
