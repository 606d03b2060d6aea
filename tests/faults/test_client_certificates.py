"""Certificates that are replaced, and that expire, under a client at work."""

from __future__ import annotations

import asyncio
import time

import pytest
from fault_scene import Scene
from fault_support import VERSION
from fault_watching import Follower

from async_support import run, until
from instep.errors import EtcdDenied
from instep.etcd import Client, Tls
from instep.testing import Certificates, EtcdCluster, EtcdServer

EXPIRES_IN_S = 2.0


def tls_of(certificates: Certificates) -> Tls:
    return Tls(cacert=certificates.ca, cert=certificates.cert, key=certificates.key)


def test_certificates_replaced_under_a_cluster_that_is_restarted_cost_nothing() -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Scene(cluster.endpoints, ttl_s=20, tls=tls_of(cluster.certificates)) as scene:
            scene.write()
            for member in cluster.members:
                await asyncio.to_thread(cluster.certificates.rotate)
                before = scene.numbers.written
                await scene.written(before + 30)
                await asyncio.to_thread(member.kill)
                await asyncio.to_thread(member.restart)
                await asyncio.to_thread(cluster.wait_healthy)
            await scene.finish()
            assert scene.client.statistics().reconnects >= 1

    with EtcdCluster(version=VERSION, tls=True) as cluster:
        run(main(cluster))


def test_a_replaced_certificate_reaches_each_connection_even_after_a_new_one_used_it() -> None:
    async def main(cluster: EtcdCluster) -> None:
        async with Client(cluster.endpoints[:2], tls=tls_of(cluster.certificates)) as client:
            await client.put("each/a", "1")
            cluster.certificates.rotate()
            assert all(status.error is None for status in await client.status())

            async def replaced() -> bool:
                await client.put("each/a", "2")
                return client.statistics().reconnects > 0

            await until(replaced, limit_s=5.0)

    with EtcdCluster(version=VERSION, tls=True) as cluster:
        run(main(cluster))


def test_an_expired_certificate_is_named_and_its_replacement_used_without_a_restart() -> None:
    async def main(server: EtcdServer) -> None:
        tls = tls_of(server.certificates)
        server.certificates.rotate(client_expires_in_s=EXPIRES_IN_S)
        expired_at = time.monotonic() + EXPIRES_IN_S + 1.0
        async with Client(server.endpoints, tls=tls, timeout_s=3) as client, Follower(client, "expire/") as follower:
            await client.put("expire/a", "1")
            await asyncio.sleep(max(0.0, expired_at - time.monotonic()))  # its expiry is the fault
            # Open connections continue: certificates are checked only when a connection is made.
            last = await client.put("expire/a", "2")
            await follower.reaches(last)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            await assert_denied(client)
            server.certificates.rotate()
            last = await put_until_it_succeeds(client)
            await follower.reaches(last)
            assert [event.kv.text for event in follower.events] == ["1", "2", "3"]

    with EtcdServer(version=VERSION, tls=True) as server:
        run(main(server))


async def assert_denied(client: Client) -> None:
    for write in (False, True):
        began = time.monotonic()
        with pytest.raises(EtcdDenied, match=r"our client certificate .*expired"):
            await (client.put("expire/a", "never") if write else client.get("expire/a"))
        assert time.monotonic() - began < 4.0


async def put_until_it_succeeds(client: Client) -> int:
    written: list[int] = []

    async def put() -> bool:
        try:
            written.append(await client.put("expire/a", "3"))
        except EtcdDenied:
            return False
        return True

    assert await until(put) < 3.0
    return written[0]
