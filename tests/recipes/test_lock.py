"""The lock: one holder by token, and no key left behind by who gave up."""

from __future__ import annotations

import asyncio
import time

import pytest
from recipe_support import at_once, keys, newest, station

from async_support import SLACK_S, run, until
from instep.coordination import Lock
from instep.errors import LockTimeout, SettingsError
from instep.etcd import Client, Op
from instep.testing import EtcdServer, Proxy


def test_holders_come_in_the_order_of_their_asking_with_rising_tokens(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = Lock(a, ours, namespace, holder="a"), Lock(b, theirs, namespace, holder="b")
            async with first as fence:
                assert first.held
                waiting = asyncio.create_task(second.acquire())
                await until(lambda: _count(a, namespace, 2))
                assert not waiting.done()
            later = await waiting
            assert later.token > fence.token
            assert (first.held, second.held) == (False, True)
            await second.release()
            assert await keys(a, namespace) == []
            assert first.statistics().acquired == first.statistics().released == 1

    run(main())


def test_a_lock_that_is_not_had_in_time_says_who_holds_it_and_leaves_nothing(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            async with Lock(a, ours, namespace, holder="node a"):
                waiter = Lock(b, theirs, namespace)
                with pytest.raises(LockTimeout, match="node a holds it, 1 in all came first") as late:
                    await waiter.acquire(timeout_s=0.5)
                assert (late.value.holder, late.value.ahead, late.value.waited_s) == ("node a", 1, 0.5)
                assert await _count(a, namespace, 1)
                assert waiter.statistics().timeouts == 1
            async with waiter:
                pass

    run(main())


def test_a_cancelled_waiter_leaves_nothing(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with (
            station(etcd.endpoints) as (a, ours),
            station(etcd.endpoints) as (b, theirs),
            Lock(a, ours, namespace),
        ):
            waiting = asyncio.create_task(Lock(b, theirs, namespace).acquire())
            await until(lambda: _count(a, namespace, 2))
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            assert await _count(a, namespace, 1)

    run(main())


def test_trying_does_not_wait(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = Lock(a, ours, namespace), Lock(b, theirs, namespace)
            assert await first.try_acquire() is not None
            assert await second.try_acquire() is None
            assert await _count(a, namespace, 1)
            await first.release()
            assert await second.try_acquire() is not None
            await second.release()

    run(main())


def test_one_lock_object_is_for_one_task(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (client, session):
            lock = Lock(client, session, namespace)
            async with lock:
                with pytest.raises(SettingsError, match="in use"):
                    await lock.acquire()
            with pytest.raises(SettingsError, match="not held"):
                await lock.release()
            with pytest.raises(SettingsError, match="more than 0 s"):
                await lock.acquire(timeout_s=0)
            with pytest.raises(SettingsError, match="prefix of its own"):
                Lock(client, session, "/")

    run(main())


def test_a_lock_covers_no_longer_name(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with (
            station(etcd.endpoints) as (client, session),
            Lock(client, session, f"{namespace}/ab"),
            Lock(client, session, f"{namespace}/a", timeout_s=5),
        ):
            pass

    run(main())


def test_a_holder_whose_lease_was_revoked_knows_it_and_is_fenced_off(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with (
            station(etcd.endpoints, ttl_s=2) as (a, ours),
            station(etcd.endpoints) as (b, theirs),
        ):
            first, second = Lock(a, ours, namespace), Lock(b, theirs, namespace)
            old = await first.acquire()
            lost = asyncio.create_task(first.wait_lost())
            waiting = asyncio.create_task(second.acquire())
            await until(lambda: _count(a, namespace, 2))
            await b.lease_revoke(ours.lease_id)
            new = await waiting
            await lost
            await until(lambda: not first.held)
            data = f"{namespace}-data"
            assert not (await a.txn([old.compare()], [Op.put(data, "old")])).succeeded
            assert (await b.txn([new.compare()], [Op.put(data, "new")])).succeeded
            await first.release()
            assert second.held
            await second.release()

    run(main())


def test_a_waiter_whose_lease_was_revoked_queues_again(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints, ttl_s=2) as (b, theirs):
            first, second = Lock(a, ours, namespace), Lock(b, theirs, namespace)
            await first.acquire()
            waiting = asyncio.create_task(second.acquire())
            await until(lambda: _count(a, namespace, 2))
            before = await newest(a, namespace)
            await a.lease_revoke(theirs.lease_id)
            await until(lambda: _queued_after(a, namespace, before))
            await first.release()
            await waiting
            assert second.held
            await second.release()

    run(main())


def test_a_key_deleted_by_hand_costs_the_waiter_its_place_and_not_its_turn(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = Lock(a, ours, namespace), Lock(b, theirs, namespace)
            await first.acquire()
            waiting = asyncio.create_task(second.acquire())
            await until(lambda: _count(a, namespace, 2))
            await a.delete(f"{namespace}/", prefix=True)
            await waiting
            await first.wait_lost()
            await first.release()
            await second.release()

    run(main())


def test_a_lost_reply_makes_no_second_key(etcd: EtcdServer, namespace: str) -> None:
    async def main(proxy: Proxy) -> None:
        async with station([proxy.endpoint]) as (client, session):
            lock = Lock(client, session, namespace)
            proxy.lose_next_reply(namespace.encode())
            await lock.acquire(timeout_s=10)
            assert proxy.statistics().replies_lost == 1
            assert await _count(client, namespace, 1)
            proxy.lose_next_reply(namespace.encode())
            await lock.release()
            await until(lambda: _count(client, namespace, 0))
            assert proxy.statistics().replies_lost == 2

    with Proxy("127.0.0.1", etcd.port) as proxy:
        run(main(proxy))


def test_a_request_that_arrives_after_its_sender_gave_up_leaves_no_key(etcd_server: EtcdServer) -> None:
    """The frozen server carries the creation out when it wakes, after the time-out, and before or after the removal."""

    async def main() -> None:
        async with station(etcd_server.endpoints, ttl_s=30, timeout_s=0.4) as (client, session):
            await client.get("warm")
            for number in range(2):
                etcd_server.pause()
                began = time.monotonic()
                with pytest.raises(LockTimeout, match="did not say"):
                    await Lock(client, session, "/late").acquire(timeout_s=0.3)
                assert time.monotonic() - began < 1.3 + SLACK_S
                etcd_server.resume()
                async with Lock(client, session, "/late", timeout_s=10):
                    assert await _count(client, "/late", 1), number
            assert session.statistics().losses == 0
            await until(lambda: session.statistics().chores == 0)
            assert await keys(client, "/late") == []

    run(main())


def test_a_release_without_etcd_is_made_up_for_by_the_session(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with station(etcd_server.endpoints, ttl_s=30, timeout_s=0.5) as (client, session):
            lock = Lock(client, session, "/made/up")
            await lock.acquire()
            etcd_server.pause()
            began = time.monotonic()
            await lock.release()
            assert time.monotonic() - began < 1 + SLACK_S
            assert not lock.held
            etcd_server.resume()
            await until(lambda: _count(client, "/made/up", 0))

    run(main())


def test_a_server_killed_and_restarted_costs_the_holder_nothing(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with (
            station(etcd_server.endpoints, ttl_s=20) as (a, ours),
            station(etcd_server.endpoints, ttl_s=20) as (b, theirs),
        ):
            first, second = Lock(a, ours, "/restart"), Lock(b, theirs, "/restart")
            fence = await first.acquire()
            waiting = asyncio.create_task(second.acquire())
            await until(lambda: _count(a, "/restart", 2))
            etcd_server.kill()
            await asyncio.to_thread(etcd_server.restart)
            assert first.held
            assert not waiting.done()
            await first.release()
            assert (await waiting).token > fence.token
            await second.release()

    run(main())


def test_many_in_one_process_pass_one_by_one(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        inside = 0

        async def work() -> None:
            nonlocal inside
            async with Lock(client, session, namespace):
                inside += 1
                assert inside == 1
                await asyncio.sleep(0)  # the others' turn, while we are inside
                inside -= 1

        async with station(etcd.endpoints) as (client, session):
            await at_once(*(work() for _ in range(12)))

    run(main())


async def _queued_after(client: Client, prefix: str, revision: int) -> bool:
    """Whether there are two, one of which has come after that revision."""
    return await _count(client, prefix, 2) and await newest(client, prefix) > revision


async def _count(client: Client, prefix: str, count: int) -> bool:
    return len(await keys(client, prefix)) == count


def test_a_lock_that_was_released_inside_its_block_does_not_hide_the_blocks_own_error(
    etcd: EtcdServer, namespace: str
) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (client, session):
            lock = Lock(client, session, namespace)

            async def block() -> None:
                async with lock:
                    await lock.release()
                    raise RuntimeError("the block's own")

            with pytest.raises(RuntimeError, match="the block's own"):
                await block()

    run(main())
