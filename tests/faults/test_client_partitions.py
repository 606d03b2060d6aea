"""Networks that are cut in two, or in one direction only, under a client at work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from fault_scene import Scene
from fault_support import VERSION

from async_support import run, until
from instep.testing import EtcdCluster, EtcdMember

LASTS_S = 3.0
LEFT_WITHIN_S = 4.0
# Without its peers a member must first notice that, which takes it one to two election timeouts; etcd then ends its
# watches after as long again.
MINORITY_LEFT_WITHIN_S = 6.0

Fault = Callable[[EtcdCluster, EtcdMember], None]


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    """One cluster for all tests; each heals it."""
    with EtcdCluster(version=VERSION, proxied=True) as running:
        yield running


def from_its_peers(cluster: EtcdCluster, member: EtcdMember) -> None:
    cluster.isolate(member, clients=False)


def from_everybody(cluster: EtcdCluster, member: EtcdMember) -> None:
    cluster.isolate(member)


def from_the_client(cluster: EtcdCluster, member: EtcdMember) -> None:
    cluster.proxy(member).black_hole()


def replies_to_the_client(cluster: EtcdCluster, member: EtcdMember) -> None:
    cluster.proxy(member).black_hole("down")


def refused_to_the_client(cluster: EtcdCluster, member: EtcdMember) -> None:
    cluster.cut_clients(member)


def what_it_tells_another(cluster: EtcdCluster, member: EtcdMember) -> None:
    cluster.block(member, next(other for other in cluster.members if other is not member))


@pytest.mark.parametrize(
    ("cut", "led", "left_within_s"),
    [
        (from_its_peers, True, MINORITY_LEFT_WITHIN_S),
        (from_its_peers, False, MINORITY_LEFT_WITHIN_S),
        (from_everybody, True, LEFT_WITHIN_S),
        (from_the_client, False, LEFT_WITHIN_S),
        (replies_to_the_client, True, LEFT_WITHIN_S),
        (refused_to_the_client, False, LEFT_WITHIN_S),
    ],
)
def test_a_client_leaves_a_member_that_is_cut_off(
    cluster: EtcdCluster, cut: Fault, led: bool, left_within_s: float
) -> None:
    async def main() -> None:
        used = await used_member(cluster, led)
        async with Scene(used_first(cluster, used), ttl_s=20) as scene:
            scene.write()
            await scene.written(30)
            assert scene.follower.watch.endpoint == used.endpoint
            await asyncio.to_thread(cut, cluster, used)
            began = time.monotonic()
            await asyncio.gather(scene.calls_succeed(left_within_s), left_by_the_watch(scene, used, left_within_s))
            await asyncio.sleep(max(0.0, began + LASTS_S - time.monotonic()))  # the length of the fault
            await asyncio.to_thread(cluster.heal)
            await scene.finish()

    try:
        run(main())
    finally:
        cluster.heal()
        cluster.wait_healthy()


@pytest.mark.parametrize("led", [True, pytest.param(False, marks=pytest.mark.long)], ids=["leader", "follower"])
def test_a_one_way_partition_between_members_costs_a_client_nothing(cluster: EtcdCluster, led: bool) -> None:
    async def main() -> None:
        used = await used_member(cluster, led)
        async with Scene(used_first(cluster, used), ttl_s=20) as scene:
            scene.write()
            await scene.written(30)
            await asyncio.to_thread(what_it_tells_another, cluster, used)
            assert await scene.calls_succeed() < LEFT_WITHIN_S
            await asyncio.sleep(LASTS_S)  # the length of the fault
            await asyncio.to_thread(cluster.heal)
            await scene.finish()

    try:
        run(main())
    finally:
        cluster.heal()
        cluster.wait_healthy()


async def used_member(cluster: EtcdCluster, led: bool) -> EtcdMember:
    leader = await asyncio.to_thread(cluster.leader)
    return leader if led else next(member for member in cluster.members if member is not leader)


def used_first(cluster: EtcdCluster, used: EtcdMember) -> list[str]:
    """A client begins with the first endpoint and stays with it."""
    return [used.endpoint, *(member.endpoint for member in cluster.members if member is not used)]


async def left_by_the_watch(scene: Scene, member: EtcdMember, limit_s: float) -> None:
    watch = scene.follower.watch
    await until(lambda: watch.endpoint not in (None, member.endpoint), limit_s)
