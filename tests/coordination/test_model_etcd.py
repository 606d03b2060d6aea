"""The model of etcd answers like etcd: the same transactions, the same outcomes, the same history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from random import Random
from typing import Literal, TypeAlias

import pytest
from model_etcd import ModelEtcd

from instep.etcd import Client, Compare, DeleteResult, Event, Listing, Op, OpResult, TxnResult
from instep.testing import EtcdServer

Relation: TypeAlias = Literal["==", "!=", "<", ">"]

ROUNDS = 300
KEYS = ("a", "a/1", "a/2", "b", "b/1")


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as running:
        yield running


def test_the_model_answers_random_transactions_and_lease_ends_as_a_real_server_does(server: EtcdServer) -> None:
    asyncio.run(_compare(server))


async def _compare(server: EtcdServer) -> None:
    random, model = Random(20261123), ModelEtcd()
    async with Client([server.endpoint]) as client:
        offset = (await client.range("a")).revision - model.revision
        leases: list[tuple[int, int]] = []
        for number in range(ROUNDS):
            if number % 40 == 0:
                leases.append(((await client.lease_grant(60)).id, model.grant()))
            if number % 40 == 39:
                theirs, ours = leases.pop(random.randrange(len(leases)))
                await client.lease_revoke(theirs)
                model.revoke(ours)
            lease = random.choice([None, *range(len(leases))])
            theirs, ours = leases[lease] if lease is not None else (0, 0)
            seed = random.random()
            found = await client.txn(*_random_txn(Random(seed), theirs, model.revision + offset, offset))
            expected = model.txn(*_random_txn(Random(seed), ours, model.revision, 0))
            assert _plain(found, offset) == _plain(expected, 0), number
        listed = await client.range("")
        assert _keys(listed, offset) == _keys(model.range(""), 0)
        events = await _history(client, offset + 2, listed.revision)
        assert [_event(event, offset) for event in events] == [
            _event(event, 0) for batch in model.history for event in batch.events
        ]


def _random_txn(
    random: Random, lease: int, revision: int, offset: int
) -> tuple[Sequence[Compare], Sequence[Op], Sequence[Op]]:
    compares = [_random_compare(random, revision, offset) for _ in range(random.choice([0, 1, 1, 2]))]
    return compares, _random_ops(random, lease), _random_ops(random, 0)


def _random_compare(random: Random, revision: int, offset: int) -> Compare:
    key = random.choice(KEYS)
    relation: Relation = random.choice(("==", "!=", "<", ">"))
    back = random.randrange(12)
    match random.randrange(6):
        case 0:
            return Compare.value(key, relation, str(random.randrange(3)))
        case 1:
            return Compare.version(key, relation, random.randrange(4))
        case 2:
            return Compare.create_revision(key, relation, max(1 + offset, revision - back))
        case 3:
            return Compare.mod_revision(key, relation, max(1 + offset, revision - back))
        case 4:
            return Compare.absent(key)
        case _:
            return Compare.present(key)


def _random_ops(random: Random, lease: int) -> list[Op]:
    puts = random.sample(KEYS, random.randrange(3))
    ops = [Op.put(key, str(random.randrange(3)), lease=lease if random.random() < 0.5 else 0) for key in puts]
    free = [key for key in KEYS if not any(put.startswith(key) for put in puts)]
    if free and random.random() < 0.4:
        ops.append(Op.delete(random.choice(free), prefix=random.random() < 0.3))
    if random.random() < 0.5:
        ops.append(Op.range(random.choice(KEYS)))
    if random.random() < 0.3:
        ops.append(Op.get(random.choice(KEYS)))
    return ops


async def _history(client: Client, start: int, end: int) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(20):
        async with client.watch("", start_revision=start) as watch:
            async for batch in watch:
                events.extend(batch.events)
                if batch.revision >= end:
                    break
    return events


def _plain(result: TxnResult, offset: int) -> object:
    return result.succeeded, result.revision - offset, [_result(item, offset) for item in result.results]


def _result(item: OpResult, offset: int) -> object:
    if isinstance(item, Listing):
        return _keys(item, offset)
    return item.deleted if isinstance(item, DeleteResult) else "put"


def _keys(listing: Listing, offset: int) -> object:
    return [
        (kv.key, kv.value, kv.create_revision - offset, kv.mod_revision - offset, kv.version, bool(kv.lease))
        for kv in listing.kvs
    ]


def _event(event: Event, offset: int) -> object:
    return event.kind, event.kv.key, event.kv.value, event.kv.mod_revision - offset
