"""A node that had to wait because a full round had no room for it has lost none of its time for joining."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from ported_agents import LIMIT_S, Agents, until

from async_support import run
from instep.etcd import Client
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Limits
from instep.testing import EtcdServer
from instep.torch._rendezvous.round_store import open_store


@pytest.fixture
def agents(etcd: EtcdServer, namespace: str) -> Iterator[Agents]:
    made = Agents(etcd.endpoint, namespace)
    yield made
    made.end()


def test_a_spare_whose_first_round_fails_asks_for_another(agents: Agents) -> None:
    """Two nodes have the round of two. One leaves, the spare gets its place, and the other dies before they meet."""

    async def main() -> None:
        store = open_store("127.0.0.1", 10.0)
        where = Address(host="127.0.0.1", port=store.port)
        async with (
            Client([agents.endpoint]) as client,
            _node(client, agents) as leaving,
            _node(client, agents) as dying,
        ):
            await asyncio.gather(*(node.seat(where, cause="new", timeout_s=LIMIT_S) for node in (leaving, dying)))
            spare = agents.one(1, 2, join_timeout="0.5").joins()
            await asyncio.to_thread(until, lambda: agents.asking() == 1)
            await asyncio.wait([asyncio.wrap_future(spare)], timeout=1.0)
            await leaving.close()
            assert len((await dying.seat(where, cause="membership", timeout_s=LIMIT_S)).seats) == 2
            await dying.close()
            assert await asyncio.to_thread(spare.exception, LIMIT_S) is None
            assert (spare.result().rank, spare.result().world_size) == (0, 1)

    run(main(), LIMIT_S)


def _node(client: Client, agents: Agents) -> RendezvousNode:
    limits = Limits(min_nodes=1, max_nodes=2)
    return RendezvousNode(client, agents.keys, limits, host="127.0.0.1", pid=1, ttl_s=2, last_call_s=0.2)
