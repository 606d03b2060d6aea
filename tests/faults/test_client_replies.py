"""Replies that are lost on the way back, after etcd has applied the request."""

from __future__ import annotations

import asyncio
import time

import pytest
from fault_support import VERSION

from async_support import run, until
from instep.errors import EtcdUnavailable
from instep.etcd import Client, Compare, Op
from instep.testing import EtcdServer, Proxy


def test_a_txn_whose_reply_is_lost_may_have_been_applied_and_was_applied_once() -> None:
    async def main(server: EtcdServer, proxy: Proxy) -> None:
        async with Client([f"http://{proxy.endpoint}", server.endpoint], timeout_s=3) as client:
            await client.put("reply/a", "1")
            proxy.lose_next_reply(b"reply/once")
            began = time.monotonic()
            with pytest.raises(EtcdUnavailable, match="read before repeating") as lost:
                await client.txn([Compare.absent("reply/once")], [Op.put("reply/once", "1"), Op.put("reply/a", "2")])
            assert lost.value.applied_unknown
            assert time.monotonic() - began < 4.0
            for key, version in (("reply/once", 1), ("reply/a", 2)):
                found = await client.get(key)
                assert found is not None
                assert found.version == version

    with EtcdServer(version=VERSION) as server, Proxy("127.0.0.1", server.port) as proxy:
        run(main(server, proxy))


@pytest.mark.parametrize("what", ["put", "delete"])
def test_a_write_whose_reply_is_lost_is_never_made_a_second_time(what: str) -> None:
    async def main(server: EtcdServer, proxy: Proxy) -> None:
        async with Client([f"http://{proxy.endpoint}"], timeout_s=3) as client:
            before = await client.put("twice/a", "1")
            proxy.lose_next_reply(b"twice/a")
            with pytest.raises(EtcdUnavailable) as lost:
                await (client.put("twice/a", "2") if what == "put" else client.delete("twice/a"))
            assert lost.value.applied_unknown
            listing = await client.range("twice/")
            assert listing.revision == before + 1

    with EtcdServer(version=VERSION) as server, Proxy("127.0.0.1", server.port) as proxy:
        run(main(server, proxy))


def test_a_read_whose_reply_is_lost_is_repeated_transparently() -> None:
    async def main(proxy: Proxy) -> None:
        async with Client([f"http://{proxy.endpoint}"], timeout_s=5) as client:
            await client.put("read/a", "1")
            proxy.lose_next_reply(b"read/a")
            found = await client.get("read/a")
            assert found is not None
            assert proxy.statistics().replies_lost == 1

    with EtcdServer(version=VERSION) as server, Proxy("127.0.0.1", server.port) as proxy:
        run(main(proxy))


def test_a_lease_survives_lost_replies_to_its_renewals() -> None:
    async def main(server: EtcdServer, proxy: Proxy) -> None:
        async with Client([f"http://{proxy.endpoint}", server.endpoint]) as client, client.watch("x/") as watch:
            waiting = asyncio.create_task(anext(watch))
            lease = await client.lease_grant(10)
            proxy.black_hole("down")
            with pytest.raises(EtcdUnavailable):
                await client.keepalive(lease.id, endpoint_index=0, timeout_s=0.5)
            assert await client.keepalive(lease.id, endpoint_index=1) == 10
            # The watch receives nothing either and leaves, although all its requests arrive.
            await until(lambda: watch.resumes > 0, limit_s=5.0)
            await client.put("x/a", "1")
            assert (await waiting).events

    with EtcdServer(version=VERSION) as server, Proxy("127.0.0.1", server.port) as proxy:
        run(main(server, proxy))
