"""Two of three members lost: typed errors in time, and everything continues when they are back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import pytest
from fault_scene import Scene
from fault_support import VERSION

from async_support import SLACK_S, run, until
from instep.errors import EtcdUnavailable
from instep.etcd import Client, Op
from instep.testing import EtcdCluster, EtcdMember


def test_without_a_quorum_every_call_ends_with_a_typed_error_within_its_timeout() -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Client(cluster.endpoints, timeout_s=1.5) as client:
            await client.put("quorum/a", "1")
            lease = await client.lease_grant(60)
            await lose_quorum(cluster)
            # Until the remaining member has noticed, it opens watches.
            await until(lambda: has_no_leader(client))
            await asyncio.gather(
                *map(
                    ends_in_time,
                    (
                        client.get("quorum/a"),
                        client.range("quorum/"),
                        client.put("quorum/a", "2"),
                        client.txn([], [Op.put("quorum/a", "3")]),
                        client.delete("quorum/a"),
                        client.lease_grant(60),
                        client.keepalive(lease.id),
                        client.watch("quorum/").__aenter__(),
                    ),
                )
            )
            statuses = await client.status()
            assert sum(status.error is None for status in statuses) == 1

    with EtcdCluster(version=VERSION) as cluster:
        run(main(cluster))


def test_a_watch_a_lease_and_writes_survive_a_lost_quorum() -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Scene(cluster.endpoints, ttl_s=20, call_timeout_s=1.0) as scene:
            scene.write()
            await scene.written(50)
            lost = await lose_quorum(cluster)
            # The remaining member sends nothing by itself: the watch must leave it anyway.
            await until(lambda: not scene.follower.watch.connected, limit_s=10.0)
            failed = scene.numbers.failed
            await until(lambda: scene.numbers.failed > failed + 2)
            for member in lost:
                await asyncio.to_thread(member.start)
            await asyncio.to_thread(cluster.wait_healthy)
            assert await scene.calls_succeed() < 2.0
            assert await until(lambda: scene.follower.watch.connected) < 2.0
            await scene.finish()

    with EtcdCluster(version=VERSION) as cluster:
        run(main(cluster))


async def has_no_leader(client: Client) -> bool:
    return all(status.leader == 0 for status in await client.status())


async def ends_in_time(call: Awaitable[object]) -> None:
    began = time.monotonic()
    with pytest.raises(EtcdUnavailable):
        await call
    assert time.monotonic() - began < 1.5 + SLACK_S


async def lose_quorum(cluster: EtcdCluster) -> list[EtcdMember]:
    """Kill the leader and one more."""
    lost = [await asyncio.to_thread(cluster.leader)]
    lost += [member for member in cluster.members if member is not lost[0]][:1]
    for member in lost:
        await asyncio.to_thread(member.kill)
    return lost
