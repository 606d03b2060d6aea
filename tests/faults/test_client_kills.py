"""Servers that are killed under a client at work: nothing is lost or delivered twice."""

from __future__ import annotations

import asyncio
import time

import pytest
from fault_scene import Scene
from fault_support import EACH_VERSION, VERSION

from async_support import run
from instep.errors import EtcdUnavailable
from instep.etcd import Client
from instep.testing import EtcdCluster, EtcdServer


@pytest.mark.parametrize("version", EACH_VERSION)
def test_2000_puts_arrive_once_and_in_order_while_three_members_are_killed_in_turn(version: str) -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Scene(cluster.endpoints) as scene:
            writing = scene.write(2000)
            for number, member in enumerate(cluster.members):
                await scene.written(300 + 500 * number)
                await asyncio.to_thread(member.kill)
                await scene.written(500 + 500 * number)
                await asyncio.to_thread(member.restart)
                await asyncio.to_thread(cluster.wait_healthy)
            await writing
            await scene.finish()
            assert scene.numbers.written == 2000

    with EtcdCluster(version=version) as cluster:
        run(main(cluster))


def test_a_catch_up_of_8000_revisions_survives_the_kills_of_the_members_that_serve_it() -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Client(cluster.endpoints) as client:
            first = await write_history(client, "history/", 8000)
        members = {member.endpoint: member for member in cluster.members}
        async with Client(cluster.endpoints) as client:
            watch = client.watch("history/", start_revision=first)
            found: list[int] = []
            async with watch:
                found += [e.kv.mod_revision for e in (await anext(watch)).events]
                assert len(found) < 8000
                for kills in (1, 2):
                    member = members[watch.endpoint or client.endpoint]
                    await asyncio.to_thread(member.kill)
                    # Events from before arrive first, and may be all that was left.
                    while watch.resumes < kills and len(found) < 8000:
                        found += [e.kv.mod_revision for e in (await anext(watch)).events]
                    await asyncio.to_thread(member.restart)
                while len(found) < 8000:
                    found += [e.kv.mod_revision for e in (await anext(watch)).events]
            assert found == list(range(first, first + 8000))
            assert watch.resumes >= 1

    with EtcdCluster(version=VERSION) as cluster:
        run(main(cluster))


async def write_history(client: Client, prefix: str, count: int) -> int:
    """Writes this many revisions of 2 KB each, too many for one message; returns the first."""
    value = b"x" * 2000
    first = await client.put(f"{prefix}0", value)
    numbers = iter(range(1, count))

    async def lane() -> None:
        for number in numbers:
            await client.put(f"{prefix}{number % 100}", value)

    await asyncio.gather(*(lane() for _ in range(16)))
    return first


def test_a_write_forwarded_to_a_dead_leader_does_not_wait_for_its_whole_timeout() -> None:
    """The member that received it never reports that it was lost."""

    async def main(cluster: EtcdCluster) -> None:
        follower = (await asyncio.to_thread(cluster.followers))[0]
        async with Client([follower.endpoint], timeout_s=20) as client:
            await client.put("passed/on", "0")
            await asyncio.to_thread((await asyncio.to_thread(cluster.leader)).kill)
            began = time.monotonic()
            results = await asyncio.gather(
                *(client.put(f"passed/on/{number}", "1") for number in range(5)), return_exceptions=True
            )
            assert time.monotonic() - began < 5.0
            lost = [result for result in results if not isinstance(result, int)]
            assert lost, "the leader was gone, and nobody could know"
            for error in lost:
                assert isinstance(error, EtcdUnavailable)
                assert error.applied_unknown
                assert "changed its leader" in str(error)
            assert await client.put("passed/on", "2", timeout_s=2)

    with EtcdCluster(version=VERSION) as cluster:
        run(main(cluster))


def test_a_single_server_that_is_down_for_5_s_costs_time_and_nothing_else() -> None:
    async def main(server: EtcdServer) -> None:
        async with Scene(server.endpoints, call_timeout_s=1.0) as scene:
            writing = scene.write(300)
            await scene.written(100)
            failed = scene.numbers.failed
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(5.0)  # the length of the fault
            assert scene.numbers.failed > failed + 2
            await asyncio.to_thread(server.restart)
            assert await scene.calls_succeed() < 2.0
            await writing
            await scene.finish()
            assert scene.follower.watch.resumes == 1

    with EtcdServer(version=VERSION) as server:
        run(main(server))
