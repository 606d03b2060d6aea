"""Watches against real servers that are killed, frozen and compacted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from async_support import SLACK_S, run, until
from instep.errors import Compacted, EtcdUnavailable
from instep.etcd import Client, Event, Op, Watch
from instep.testing import EtcdServer


def test_events_come_in_order_and_a_revision_comes_whole(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client, client.watch("order/") as watch:
            done = await client.txn([], [Op.put(f"order/{n}", "") for n in range(100)])
            await client.put("elsewhere", "")
            await client.delete("order/7")
            batch = await anext(watch)
            found = list(batch.events)
            if len(found) < 101:
                assert batch.revision == done.revision
                assert len(found) == 100
                found += (await anext(watch)).events
            assert [e.kv.key for e in found[:100]] == [f"order/{n}" for n in range(100)]
            assert (found[-1].kind, found[-1].kv.key) == ("delete", "order/7")
            assert watch.next_revision == done.revision + 3

    run(main())


def test_a_watch_of_one_key_does_not_see_its_neighbours(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client, client.watch("one", prefix=False) as watch:
            await client.put("one/more", "1")
            await client.put("one", "2")
            (found,) = (await anext(watch)).events
            assert (found.kv.key, found.kv.text) == ("one", "2")

    run(main())


def test_a_watch_from_a_revision_delivers_the_history_first(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            first = await client.put("history/a", "1")
            await client.put("history/a", "2")
            async with client.watch("history/", start_revision=first) as watch:
                await client.put("history/a", "3")
                assert [e.kv.text for e in await events(watch, 3)] == ["1", "2", "3"]

    run(main())


def test_a_revision_larger_than_a_message_part_still_comes_whole(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint], timeout_s=20) as client:
            value = b"x" * 700_000
            first = 0
            for number in range(12):
                done = await client.txn([], [Op.put(f"large/{number}/{half}", value) for half in "ab"])
                first = first or done.revision
            async with client.watch("large/", start_revision=first) as watch:
                seen = 0
                while seen < 24:
                    batch = await anext(watch)
                    by_revision: dict[int, int] = {}
                    for e in batch.events:
                        by_revision[e.kv.mod_revision] = by_revision.get(e.kv.mod_revision, 0) + 1
                    assert set(by_revision.values()) == {2}
                    seen += len(batch.events)

    run(main())


def test_cancelling_a_wait_loses_no_event(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client, client.watch("cancel/") as watch:
            found: list[str] = []

            async def write() -> None:
                for number in range(200):
                    await client.put("cancel/a", str(number))

            writer = asyncio.create_task(write())
            while len(found) < 200:
                try:
                    async with asyncio.timeout(0.001):
                        found += [e.kv.text for e in (await anext(watch)).events]
                except TimeoutError:
                    pass
            await writer
            assert found == [str(number) for number in range(200)]
            assert watch.resumes == 0

    run(main())


def test_a_killed_server_costs_no_event_and_repeats_none(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint], timeout_s=10) as client, client.watch("kill/") as watch:
            written: list[int] = []
            maybe = 0
            stop = asyncio.Event()

            async def write() -> None:
                nonlocal maybe
                while not stop.is_set():
                    try:
                        written.append(await client.put("kill/a", str(len(written))))
                    except EtcdUnavailable:
                        maybe += 1  # its event may come or not
                    await asyncio.sleep(0)  # the reader's turn

            seen: list[int] = []

            async def read() -> None:
                async for batch in watch:
                    seen.extend(e.kv.mod_revision for e in batch.events)

            writer, reader = asyncio.create_task(write()), asyncio.create_task(read())
            for _ in range(3):
                before = len(seen)
                await until(lambda before=before: len(seen) > before + 50)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.restart)
            before = len(seen)
            await until(lambda: len(seen) > before + 50)
            stop.set()
            await writer
            await until(lambda: bool(seen) and seen[-1] >= written[-1])
            await watch.close()
            await reader
            assert seen == sorted(set(seen))
            assert set(written) <= set(seen)
            assert len(seen) <= len(written) + maybe
            assert watch.resumes >= 3
            assert client.statistics().watch_resumes == watch.resumes

    run(main())


def test_a_watch_from_now_sees_a_put_made_while_it_was_cut_off(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint], timeout_s=10) as client:
            await client.put("now/a", "before")
            async with client.watch("now/") as watch:
                pinned = watch.created_revision
                waiting = asyncio.create_task(anext(watch))
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                await asyncio.to_thread(server.etcdctl, "put", "now/a", "meanwhile")
                batch = await waiting
                assert [e.kv.text for e in batch.events] == ["meanwhile"]
                assert batch.revision == pinned + 1
                assert watch.created_revision == pinned

    run(main())


def test_compaction_of_the_history_it_needs_ends_a_watch(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            first = await client.put("compact/a", "1")
            last = await client.put("compact/a", "2")
            await client.compact(last)
            async with client.watch("compact/", start_revision=last) as fine:
                assert [e.kv.text for e in await events(fine, 1)] == ["2"]
            with pytest.raises(Compacted, match="list again, then watch") as gone:
                async with client.watch("compact/", start_revision=first) as watch:
                    await anext(watch)
            assert gone.value.compact_revision == last

    run(main())


def test_a_watch_leaves_a_frozen_server_within_4_s() -> None:
    async def main(frozen: EtcdServer, other: EtcdServer) -> None:
        endpoints = [frozen.endpoint, other.endpoint]
        async with Client(endpoints) as client, client.watch("freeze/") as watch:
            assert client.endpoint == frozen.endpoint
            waiting = asyncio.create_task(anext(watch))
            frozen.pause()
            try:
                took_s = await until(lambda: watch.resumes > 0)
            finally:
                frozen.resume()
            assert took_s < 4 + SLACK_S
            assert client.endpoint == other.endpoint
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    with EtcdServer() as frozen, EtcdServer() as other:
        run(main(frozen, other))


def test_a_single_server_that_was_frozen_is_used_again(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint]) as client, client.watch("thaw/") as watch:
            waiting = asyncio.create_task(anext(watch))
            server.pause()
            await until(lambda: not watch.connected)
            assert client.link == "suspended"
            server.resume()
            await client.put("thaw/a", "1")
            assert (await waiting).events[0].kv.text == "1"
            assert client.link == "connected"

    run(main())


def test_a_quiet_watch_is_not_mistaken_for_a_frozen_one(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with (
            Client([shared_server.endpoint]) as client,
            client.watch("quiet/", probe_s=0.05, silence_s=1.0) as watch,
        ):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.5):
                    await anext(watch)
            assert watch.resumes == 0
            await client.put("quiet/a", "1")
            assert (await anext(watch)).events

    run(main())


def test_a_closed_watch_ends_its_iteration(shared_server: EtcdServer) -> None:
    async def main() -> None:
        client = Client([shared_server.endpoint])
        watch = await client.watch("close/").__aenter__()

        async def read() -> int:
            return len([batch async for batch in watch])

        reader = asyncio.create_task(read())
        await client.put("close/a", "1")
        await until(lambda: watch.next_revision > watch.created_revision + 1)
        await client.close()
        assert await reader == 1

    run(main())


def test_closing_the_client_ends_a_watch_that_is_looking_for_a_server(server: EtcdServer) -> None:
    async def main() -> None:
        client = Client([server.endpoint])
        watch = await client.watch("seek/").__aenter__()
        waiting = asyncio.create_task(anext(watch, None))
        server.pause()
        try:
            await until(lambda: not watch.connected)
            await client.close()
            assert await waiting is None
        finally:
            server.resume()

    run(main())


def test_a_watch_without_an_answer_fails_within_the_clients_timeout() -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"], timeout_s=0.7) as client:
            began = time.monotonic()
            with pytest.raises(EtcdUnavailable, match=r"etcd at http://127\.0\.0\.1:1.*: no answer within 0\.7 s"):
                await client.watch("unreachable/").__aenter__()
            assert time.monotonic() - began < 0.7 + SLACK_S

    run(main())


def test_many_watches_of_one_client_do_not_disturb_each_other(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            watches = [await client.watch(f"many/{n}/").__aenter__() for n in range(20)]
            for n in range(20):
                await client.put(f"many/{n}/a", str(n))
            for n, watch in enumerate(watches):
                assert [e.kv.text for e in (await anext(watch)).events] == [str(n)]

    run(main())


async def events(watch: Watch, count: int) -> list[Event]:
    """The next `count` events or a few more: whole batches."""
    found: list[Event] = []
    async for batch in batches(watch):
        found.extend(batch)
        if len(found) >= count:
            break
    return found


async def batches(watch: Watch) -> AsyncIterator[tuple[Event, ...]]:
    async for batch in watch:
        assert batch.events
        assert batch.revision == batch.events[-1].kv.mod_revision
        yield batch.events
