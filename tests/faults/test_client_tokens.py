"""Tokens that become invalid under a client of a cluster: by a restart of the member that knew them, or by age."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from fault_scene import Scene
from fault_support import VERSION, VERSIONS

from async_support import run, until
from instep.etcd import Client, Credentials
from instep.testing import EtcdCluster

ROOT = Credentials(user="root", password="secret")
TOKEN_TTL_S = 2
# The oldest minor release behaves differently; of each the newest at hand will do.
MINORS = sorted({".".join(version.split(".")[:2]): version for version in VERSIONS}.values())


@pytest.fixture(params=MINORS)
def guarded(request: pytest.FixtureRequest) -> Iterator[EtcdCluster]:
    # A member killed within 100 ms of an authentication would replay it at its start, and know the token.
    at_once = ["--backend-batch-limit=1"]
    with EtcdCluster(
        version=request.param, auth="root:secret", auth_token_ttl_s=TOKEN_TTL_S, extra_args=at_once
    ) as cluster:
        yield cluster


def test_tokens_lost_by_members_restarted_in_turn_are_replaced_transparently(guarded: EtcdCluster) -> None:
    async def main() -> None:
        async with Scene(guarded.endpoints, ttl_s=20, credentials=ROOT) as scene:
            scene.write()
            for member in guarded.members:
                before = scene.numbers.written
                await scene.written(before + 30)
                await asyncio.to_thread(member.kill)
                await asyncio.to_thread(member.restart)
                await asyncio.to_thread(guarded.wait_healthy)
            assert await scene.calls_succeed() < 3.0
            await scene.finish()
            assert scene.client.statistics().reauthentications >= 1

    run(main())


def test_an_expired_token_is_replaced_transparently() -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with (
            Client(cluster.endpoints, credentials=ROOT) as client,
            client.watch("age/") as watch,
        ):
            waiting = asyncio.create_task(anext(watch))
            lease = await client.lease_grant(60)
            await client.put("age/other", "1")
            assert (await waiting).events
            waiting = asyncio.create_task(anext(watch))
            # Each member counts for itself, and use on one keeps the token alive on that one only.
            token = client._transport.auth.generation
            index = (client.endpoint_index + 1) % 3

            async def aged() -> bool:
                await asyncio.sleep(TOKEN_TTL_S + 0.5)  # the age is the fault
                assert await client.keepalive(lease.id, endpoint_index=index) == 60
                await client.put("age/a", "1")
                return client._transport.auth.generation > token

            await until(aged)
            assert (await waiting).events[0].kv.key == "age/a"

    with EtcdCluster(version=VERSION, auth="root:secret", auth_token_ttl_s=TOKEN_TTL_S) as cluster:
        run(main(cluster))
