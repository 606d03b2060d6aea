"""PyTorch's tests of a rendezvous backend: a state is replaced only by whoever knows it as it is. Ours is the round.

A backend's token is here what the coordinator has read, and its own term: etcd compares both in one txn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from ported_cases import CONTRACTS, Attempt, Contract

from async_support import run
from instep.errors import JoinRefused
from instep.etcd import Client
from instep.recipes import Election, Session
from instep.recipes.fence import Fence
from instep.recipes.informer import Informer
from instep.rendezvous.coordinator import Coordinator
from instep.rendezvous.decision import WriteRound
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Closed, Limits, Round
from instep.tasks import cancelled
from instep.testing import EtcdServer

LIMITS = Limits(min_nodes=1, max_nodes=1)


@pytest.mark.parametrize("contract", CONTRACTS, ids=[contract.name for contract in CONTRACTS])
def test_the_round_is_replaced_only_by_whoever_knows_it(etcd: EtcdServer, namespace: str, contract: Contract) -> None:
    async def main() -> None:
        keys = RendezvousKeys(namespace, "ported")
        async with Client(etcd.endpoints) as client, Session(client) as session:
            writer = Writer(client, session, keys)
            await writer.begin()
            for attempt in contract.attempts:
                before = await client.get(keys.round)
                assert await writer.writes(attempt) == attempt.taken, attempt
                after = await client.get(keys.round)
                if attempt.taken:
                    assert after is not None
                    assert Round.decode(after.value).number == attempt.number
                    assert before is None or after.mod_revision > before.mod_revision
                else:
                    assert after == before

    run(main())


def test_a_node_knows_no_round_where_there_is_none(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with Client(etcd.endpoints) as client, a_node(client, RendezvousKeys(namespace, "ported")) as node:
            assert node.known.round is None
            assert node.known.readable

    run(main())


def test_a_node_knows_the_round_that_is_there(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        keys = RendezvousKeys(namespace, "ported")
        there = Round(epoch=1, number=7, limits=LIMITS)
        async with Client(etcd.endpoints) as client:
            await client.put(keys.round, there.encode())
            async with a_node(client, keys) as node:
                assert node.known.round == there

    run(main())


@pytest.mark.parametrize("state", ["no document", '{"format": 2, "epoch": 1, "number": 1}', ""])
def test_a_round_that_cannot_be_read_is_refused_in_a_sentence_and_left_alone(
    etcd: EtcdServer, namespace: str, state: str
) -> None:
    async def main() -> None:
        keys = RendezvousKeys(namespace, "ported")
        async with Client(etcd.endpoints) as client:
            await client.put(keys.round, state)
            async with a_node(client, keys) as node:
                with pytest.raises(JoinRefused, match="written by another version of Instep"):
                    await node.seat(Address(host="localhost", port=1), cause="new", timeout_s=20.0)
            found = await client.get(keys.round)
            assert found is not None
            assert (found.text, found.version) == (state, 1)

    run(main())


@contextlib.asynccontextmanager
async def a_node(client: Client, keys: RendezvousKeys) -> AsyncIterator[RendezvousNode]:
    async with RendezvousNode(client, keys, LIMITS, host="localhost", pid=1, ttl_s=10, last_call_s=0.0) as node:
        yield node


class Writer:
    """A coordinator whose knowledge is chosen by the test."""

    def __init__(self, client: Client, session: Session, keys: RendezvousKeys) -> None:
        self._client = client
        self._keys = keys
        self._election = Election(client, session, keys.election)
        self._coordinator = Coordinator(client, session, keys, "writer", ttl_s=10.0, last_call_s=0.0)

    async def begin(self) -> None:
        self._fence = await self._election.campaign("writer")
        self._knowing_nothing = self._before = await self._look()

    async def writes(self, attempt: Attempt) -> bool:
        """Whether etcd took it."""
        now = await self._look()
        if attempt.closed_before:
            await self._client.put(self._keys.closed, Closed(epoch=1).encode())
        fence = self._fence if attempt.term == "its own" else Fence(f"{self._keys.election}nobody", 1)
        action = WriteRound(Round(epoch=1, number=attempt.number, limits=LIMITS))
        known = {"nothing": self._knowing_nothing, "what was before": self._before, "all": now}[attempt.knows]
        self._before = now
        if not attempt.taken:
            return await self._coordinator._carry_out(action, known, fence)
        async with following(self._client, self._keys) as informer:
            return await self._coordinator._carry_out(action, informer, fence)

    async def _look(self) -> Informer:
        """What is there now, and nothing of what comes."""
        async with following(self._client, self._keys) as informer:
            return informer


@contextlib.asynccontextmanager
async def following(client: Client, keys: RendezvousKeys) -> AsyncIterator[Informer]:
    informer = Informer(client, keys.root)
    task = asyncio.create_task(informer.run())
    try:
        await informer.wait_listed()
        yield informer
    finally:
        await cancelled(task)
