"""A node of torchrun that asks for a seat while etcd is away gets it when etcd is back."""

from __future__ import annotations

import asyncio

from async_support import run, until
from instep.etcd import Client
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Limits, Round
from instep.testing import EtcdServer

ALONE = Limits(min_nodes=1, max_nodes=1)
TTL_S = 2


def test_a_lease_that_ends_while_a_node_begins_to_ask_does_not_end_its_asking(
    etcd_server: EtcdServer, namespace: str
) -> None:
    async def main() -> Round:
        keys = RendezvousKeys(namespace, "asking")
        async with Client(etcd_server.endpoints, timeout_s=0.3) as client:
            node = RendezvousNode(client, keys, ALONE, host="here", pid=1, ttl_s=TTL_S, last_call_s=0.1)
            async with node:
                first = await node.seat(Address(host="here", port=1), cause="new", timeout_s=20.0)
                key = f"{keys.nodes}{node.name}"
                await until(lambda: '"asks":false' in etcd_server.etcdctl("get", key))
                etcd_server.pause()
                asks = asyncio.ensure_future(node.seat(Address(host="here", port=2), cause="failure", timeout_s=60.0))
                await until(lambda: asks.done() or node._session.link == "lost")
                await asyncio.wait([asks], timeout=TTL_S)
                etcd_server.resume()
                assert first.number == 1
                return await asks

    assert run(main()).store == Address(host="here", port=2)
