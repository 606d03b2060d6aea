"""Members that are slow rather than dead."""

from __future__ import annotations

import asyncio

import pytest
from fault_scene import Scene
from fault_support import VERSION

from async_support import run, until
from instep.testing import EtcdCluster, Proxy, slow_disk_refusal

DELAY_S = 0.3
SLOW_DISK_MS = 200


def test_a_member_that_takes_300_ms_is_slow_and_nothing_else() -> None:
    async def main(slow: Proxy) -> None:
        async with Scene([f"http://{slow.endpoint}"]) as scene:
            await scene.write(20)
            slow.delay(DELAY_S / 2, jitter_s=DELAY_S / 3)
            renewals = scene.keeper.renewals
            await scene.write(6)
            await until(lambda: scene.keeper.renewals >= renewals + 2)
            slow.heal()
            await scene.write(20)
            await scene.finish()
            # Slow is not silent: neither the watch nor the connection was abandoned.
            assert scene.follower.watch.resumes == 0
            assert scene.client.statistics().reconnects == 0
            assert scene.numbers.failed == 0

    with EtcdCluster(version=VERSION) as cluster, Proxy("127.0.0.1", port_of(cluster)) as slow:
        run(main(slow))


@pytest.mark.skipif(slow_disk_refusal() is not None, reason=str(slow_disk_refusal()))
def test_a_leader_whose_disk_is_slow_costs_time_and_nothing_else() -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Scene(cluster.endpoints) as scene:
            scene.write()
            await scene.written(30)
            leader = await asyncio.to_thread(cluster.leader)
            with leader.slow_disk(SLOW_DISK_MS):
                await scene.written(scene.numbers.written + 10)
            await scene.written(scene.numbers.written + 30)
            await scene.finish()

    with EtcdCluster(version=VERSION, fsync=True) as cluster:
        run(main(cluster))


def port_of(cluster: EtcdCluster) -> int:
    return int(cluster.members[0].endpoint.rsplit(":", 1)[1])
