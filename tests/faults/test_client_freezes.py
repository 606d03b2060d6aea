"""Members that are frozen (SIGSTOP) under a client at work: it leaves them soon, and no short freeze costs a lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fault_scene import Scene
from fault_support import EACH_VERSION, VERSION

from async_support import run, until
from instep.etcd import Client, Compare, LeaseKeeper, LeaseTiming, Op
from instep.testing import EtcdCluster, EtcdMember

LEFT_WITHIN_S = 4.0
REST_S = 0.03


@asynccontextmanager
async def frozen(member: EtcdMember) -> AsyncIterator[float]:
    """Freezes the member from the start of the block, whose time is returned, to its end."""
    await asyncio.to_thread(member.pause)
    try:
        yield time.monotonic()
    finally:
        await asyncio.to_thread(member.resume)


async def lasts(since: float, seconds: float) -> None:
    """Until the fault has lasted so long."""
    await asyncio.sleep(max(0.0, since + seconds - time.monotonic()))


async def leader_first(cluster: EtcdCluster) -> list[EtcdMember]:
    leader = await asyncio.to_thread(cluster.leader)
    return [leader, *(member for member in cluster.members if member is not leader)]


@pytest.mark.parametrize(
    ("ttl_s", "frozen_s", "sequences"), [(4, 3.0, 1), pytest.param(10, 8.0, 20, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("version", EACH_VERSION)
def test_three_members_frozen_in_turn_cost_no_lease(version: str, ttl_s: int, frozen_s: float, sequences: int) -> None:
    """A lease survives a freeze that its timing covers."""
    assert LeaseTiming(ttl_s).rides_out_s >= frozen_s

    async def main(cluster: EtcdCluster) -> None:
        async with Scene(cluster.endpoints, ttl_s=ttl_s, rest_s=REST_S) as scene:
            scene.write()
            for _ in range(sequences):
                for member in await leader_first(cluster):
                    async with frozen(member) as since:
                        assert await scene.calls_succeed() < LEFT_WITHIN_S
                        await until(lambda: scene.follower.watch.connected)
                        await lasts(since, frozen_s)
                    await asyncio.to_thread(cluster.wait_healthy)
                    await scene.assert_lease_kept()
            await scene.finish()

    with EtcdCluster(version=version) as cluster:
        run(main(cluster), limit_s=60 + 40 * sequences)


@pytest.mark.long
@pytest.mark.parametrize("which", [0, 1], ids=["leader", "follower"])
@pytest.mark.parametrize("version", EACH_VERSION)
def test_a_lease_of_30_s_survives_a_freeze_of_20_s(version: str, which: int) -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Scene(cluster.endpoints, ttl_s=30, rest_s=REST_S) as scene:
            scene.write()
            member = (await leader_first(cluster))[which]
            async with frozen(member) as since:
                assert await scene.calls_succeed() < LEFT_WITHIN_S
                await lasts(since, 20.0)
            await asyncio.to_thread(cluster.wait_healthy)
            await scene.finish()

    with EtcdCluster(version=version) as cluster:
        run(main(cluster))


def test_a_lease_that_a_waking_leader_revokes_is_noticed_within_2_s_and_its_fence_holds() -> None:
    """etcd may revoke a lease that was kept alive (issue 15247); writes that it guarded must then be refused."""

    async def main(cluster: EtcdCluster) -> None:
        async with Client(cluster.endpoints) as client, LeaseKeeper(client, ttl_s=5) as keeper:
            await client.put("fence/token", "", lease=keeper.lease_id)
            async with frozen((await leader_first(cluster))[0]) as since:
                await lasts(since, 7.0)
                assert keeper.valid
                assert await client.get("fence/token") is not None
            await asyncio.to_thread(cluster.wait_healthy)
            await check_consistent(client, keeper)

    with EtcdCluster(version=VERSION) as cluster:
        run(main(cluster))


async def check_consistent(client: Client, keeper: LeaseKeeper) -> None:
    """Either nothing happened, or writes that the lease guarded are refused, and the keeper notices soon after."""
    token = await client.get("fence/token")
    guarded = await client.txn([Compare.present("fence/token")], [Op.put("fence/guarded", "")])
    if token is None:
        assert not guarded.succeeded
        async with asyncio.timeout(2.0):
            await keeper.wait_lost()
    else:
        renewals = keeper.renewals
        await until(lambda: keeper.renewals > renewals + 1)
        assert keeper.valid
