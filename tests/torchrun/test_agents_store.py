"""A node that dies between the meeting and the workers' start ends no other agent: torchrun's own code is asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from torch.distributed import Store, TCPStore
from torch.distributed.elastic.agent.server.api import SimpleElasticAgent

from instep.rendezvous.records import Address
from instep.torch._rendezvous.round_store import AgentsStore, connect_store, open_store

pytestmark = pytest.mark.torch

HOST = "127.0.0.1"


def of_agent(store: Store, rank: int, size: int = 2, *, timeout_s: float = 20.0) -> AgentsStore:
    return AgentsStore(store, rank, size, timeout_s=timeout_s)


def guest_of(store: TCPStore) -> TCPStore:
    return connect_store(Address(host=HOST, port=store.port), 10.0, 60.0)


def ranks(store: AgentsStore, rank: int, size: int = 2, workers: int = 2) -> list[tuple[int, int]]:
    """What torchrun gives the workers of a node: rank and world size."""
    spec = SimpleNamespace(role="default", local_world_size=workers)
    found = SimpleElasticAgent._assign_worker_ranks(SimpleNamespace(), store, rank, size, spec)  # type: ignore[arg-type]
    return [(worker.global_rank, worker.world_size) for worker in found]


def test_ranks_are_those_that_torchrun_gives_where_all_live() -> None:
    host = open_store(HOST, 60.0)
    stores = [of_agent(host, 0), of_agent(guest_of(host), 1)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(ranks, stores, [0, 1], [2, 2], [1, 2]))
    assert found == [[(0, 3)], [(1, 3), (2, 3)]]
    assert [store.is_lost for store in stores] == [False, False]


def test_rank_0_goes_on_when_another_has_died_and_gives_nobody_ranks_that_are_a_guess() -> None:
    host = open_store(HOST, 60.0)
    store, late = of_agent(host, 0, timeout_s=0.2), of_agent(guest_of(host), 1, timeout_s=0.2)
    assert ranks(store, 0) == [(0, 4), (1, 4)]
    assert store.is_lost
    assert ranks(late, 1, workers=1) == [(1, 2)]
    assert late.is_lost


def test_another_goes_on_when_rank_0_has_died() -> None:
    host = open_store(HOST, 60.0)
    store = of_agent(guest_of(host), 1)
    del host
    assert ranks(store, 1) == [(2, 4), (3, 4)]
    assert store.is_lost
