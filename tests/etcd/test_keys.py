"""Keys, ranges and transactions against a real server."""

from __future__ import annotations

import asyncio
import math

import pytest

from async_support import run
from instep.errors import Compacted, EtcdError, HistoryChanged, LeaseLost, SettingsError
from instep.etcd import Client, Compare, DeleteResult, Listing, Op, PutResult
from instep.testing import EtcdServer


def test_a_put_value_is_read_back_with_its_revisions(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            first = await client.put("kv/a", "häh")
            second = await client.put("kv/a", b"\xff\x00")
            found = await client.get("kv/a")
            assert found is not None
            assert (found.key, found.value, found.text) == ("kv/a", b"\xff\x00", "\ufffd\x00")
            assert (found.create_revision, found.mod_revision, found.version) == (first, second, 2)
            assert await client.get("kv/none") is None

    run(main())


def test_keys_that_are_not_utf8_survive_the_round_trip(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            name = b"raw/\xfe".decode("utf-8", errors="surrogateescape")
            await client.put(name, "1")
            assert (await client.range("raw/")).kvs[0].key == name
            assert await client.delete(name) == 1

    run(main())


def test_delete_returns_the_number_of_deleted_keys(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            for name in ("del/a", "del/b", "delete"):
                await client.put(name, "")
            assert await client.delete("del/", prefix=True) == 2
            assert await client.delete("del/a") == 0
            assert await client.get("delete") is not None

    run(main())


def test_pages_are_read_at_one_revision_while_others_write(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            for number in range(40):
                await client.put(f"page/{number:03}", "old")
            stop = asyncio.Event()

            async def write() -> None:
                number = 0
                while not stop.is_set():
                    ops = [Op.put(f"page/{number % 40:03}", "new"), Op.delete(f"page/{(number + 1) % 40:03}")]
                    await client.txn([], ops)
                    number += 1

            writer = asyncio.create_task(write())
            try:
                for _ in range(10):
                    found = await client.range("page/", page_size=3)
                    again = await client.range("page/", revision=found.revision)
                    assert found == again
            finally:
                stop.set()
                await writer

    run(main())


def test_a_listing_can_be_limited_reversed_or_without_values(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            for name in ("c", "a", "b"):
                await client.put(f"list/{name}", "value")
            names = [kv.key for kv in (await client.range("list/", limit=2, page_size=1)).kvs]
            assert names == ["list/a", "list/b"]
            newest = await client.range("list/", newest_first=True, limit=2)
            assert [kv.key for kv in newest.kvs] == ["list/b", "list/a"]
            assert [kv.value for kv in (await client.range("list/", keys_only=True)).kvs] == [b""] * 3
            assert len((await client.range("")).kvs) >= 3
            with pytest.raises(SettingsError, match="limit"):
                await client.range("list/", newest_first=True)

    run(main())


def test_a_listing_larger_than_one_message_is_read_in_smaller_pages(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint], timeout_s=30) as client:
            value = b"x" * 1_400_000
            for number in range(60):
                await client.put(f"big/{number:03}", value)
            assert len((await client.range("big/")).kvs) == 60

    run(main())


def test_a_transaction_compares_value_version_lease_and_both_revisions(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            created = await client.put("txn/a", "1")
            modified = await client.put("txn/a", "2")
            lease = await client.lease_grant(30)
            await client.put("txn/held", "1", lease=lease.id)
            holding = [
                Compare.value("txn/a", "==", "2"),
                Compare.value("txn/a", "!=", "1"),
                Compare.version("txn/a", "==", 2),
                Compare.version("txn/a", ">", 1),
                Compare.create_revision("txn/a", "==", created),
                Compare.mod_revision("txn/a", "<", modified + 1),
                Compare.version("txn/none", "==", 0),
                Compare.lease("txn/a", "==", 0),
                Compare.lease("txn/held", "==", lease.id),
                Compare.present("txn/a"),
                Compare.absent("txn/none"),
                Compare.absent("txn/none/", prefix=True),
            ]
            for compare in holding:
                assert (await client.txn([compare], [])).succeeded, compare
            failing = [
                Compare.lease("txn/a", "!=", 0),
                Compare.value("txn/a", "==", "1"),
                Compare.version("txn/a", "<", 2),
                Compare.create_revision("txn/a", ">", created),
                Compare.mod_revision("txn/a", "!=", modified),
                Compare.value("txn/none", "==", ""),
                Compare.absent("txn/a"),
                Compare.absent("txn/", prefix=True),
                Compare.present("txn/none"),
            ]
            for compare in failing:
                assert not (await client.txn([compare], [])).succeeded, compare
            assert not (await client.txn([*holding, failing[0]], [])).succeeded

    run(main())


def test_a_transaction_returns_one_result_for_each_operation(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            await client.put("ops/old", "1")
            done = await client.txn(
                [Compare.absent("ops/new")],
                [Op.put("ops/new", "2"), Op.delete("ops/old"), Op.get("ops/new"), Op.range("ops/", limit=1)],
                [Op.get("ops/old")],
            )
            assert done.succeeded
            put, deleted, got, listed = done.results
            assert put == PutResult(done.revision)
            assert deleted == DeleteResult(done.revision, 1)
            assert isinstance(got, Listing)
            assert got.kvs[0].text == "2"
            assert listed == got
            other = await client.txn(
                [Compare.absent("ops/new")], [], [Op.get("ops/old"), Op.delete("ops/", prefix=True)]
            )
            assert not other.succeeded
            assert other.results == (Listing((), other.revision), DeleteResult(other.revision, 1))

    run(main())


def test_a_request_too_large_for_etcd_is_not_sent(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            with pytest.raises(SettingsError, match=r"1\.5 MiB in a request"):
                await client.put("big", b"x" * 1_600_000)
            with pytest.raises(SettingsError, match=r"1\.5 MiB in a request"):
                await client.txn([], [Op.put("a", b"x" * 900_000), Op.put("b", b"x" * 900_000)])
            with pytest.raises(SettingsError, match="129 operations"):
                await client.txn([], [Op.put(f"many/{n}", "") for n in range(129)])
            assert (await client.txn([], [Op.put(f"many/{n}", "") for n in range(128)])).succeeded
            assert await client.put("big", b"x" * 1_570_000)
            with pytest.raises(SettingsError, match="must not be empty"):
                await client.get("")
            assert client.statistics().failures == 0

    run(main())


def test_refusals_of_etcd_become_typed_errors(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            with pytest.raises(LeaseLost, match="expired or was revoked") as lost:
                await client.put("refused", "1", lease=4711)
            assert lost.value.lease_id == 4711
            with pytest.raises(HistoryChanged, match="has not reached the revision") as future:
                await client.range("refused", revision=10**9)
            assert future.value.code == "OUT_OF_RANGE"
            revision = await client.put("refused", "1")
            await client.put("refused", "2")
            await client.compact(revision + 1)
            with pytest.raises(Compacted, match="list again"):
                await client.range("refused", revision=revision)
            with pytest.raises(EtcdError, match="duplicate key"):
                await client.txn([], [Op.put("twice", "1"), Op.put("twice", "2")])

    run(main())


def test_a_closed_client_raises_an_error(shared_server: EtcdServer) -> None:
    async def main() -> None:
        client = Client([shared_server.endpoint])
        await client.put("closed", "1")
        await client.close()
        await client.close()
        with pytest.raises(EtcdError, match="is closed"):
            await client.get("closed")

    run(main())


def test_status_and_statistics_describe_the_cluster_and_the_client(shared_server: EtcdServer) -> None:
    async def main() -> None:
        dead = "http://127.0.0.1:1"
        async with Client([shared_server.endpoint, dead]) as client:
            assert client.link == "suspended"
            await client.put("status", "1")
            assert client.link == "connected"
            alive, gone = await client.status(timeout_s=2)
            assert alive.version == shared_server.version
            assert alive.error is None
            assert alive.leader == alive.member_id != 0
            assert gone.error is not None
            assert "connection refused" in str(gone.error)
            assert client.statistics().calls == 3
            assert "127.0.0.1" in repr(client)

    run(main())


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, math.nan])
def test_a_client_without_time_for_an_answer_is_refused(timeout_s: float) -> None:
    with pytest.raises(SettingsError, match="leaves no time"):
        Client(["127.0.0.1:1"], timeout_s=timeout_s)


def test_a_timeout_of_nan_is_refused() -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"]) as client:
            with pytest.raises(SettingsError, match="leaves no time"):
                await client.get("a", timeout_s=math.nan)
            with pytest.raises(SettingsError, match="leaves no time"):
                await client.put("a", "1", timeout_s=math.nan)

    run(main())
