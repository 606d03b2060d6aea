"""The double barrier: together in, together out, and a time-out that names who is missing."""

from __future__ import annotations

import asyncio
import time

import pytest
from recipe_support import at_once, keys, newest, station

from async_support import SLACK_S, run, until
from instep.coordination import DoubleBarrier, Session
from instep.errors import BarrierFull, BarrierTimeout, EtcdUnavailable, LeaseLost, NameTaken, SettingsError
from instep.etcd import Client
from instep.testing import EtcdServer, Proxy

NAMES = ("a", "b", "c")


def barriers(
    client: Client, session: Session, prefix: str, names: tuple[str, ...] | None = NAMES
) -> list[DoubleBarrier]:
    return [DoubleBarrier(client, session, prefix, 3, names) for _ in range(3)]


def test_all_go_in_together_and_out_together_round_after_round(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (client, session):
            three = barriers(client, session, namespace)
            for number in range(1, 4):
                early = [asyncio.create_task(three[i].enter(NAMES[i], 20)) for i in range(2)]
                await until(lambda: _here(client, namespace, 2))
                assert not any(task.done() for task in early)
                assert await at_once(*early, three[2].enter("c", 20)) == [number] * 3
                assert all(barrier.inside for barrier in three)
                leaving = [asyncio.create_task(three[i].leave(20)) for i in range(2)]
                await until(lambda: _here(client, namespace, 1))
                assert not any(task.done() for task in leaving)
                await at_once(*leaving, three[2].leave(20))
                assert await _here(client, namespace, 0)
            assert (three[0].statistics().entered, three[0].statistics().left) == (3, 3)

    run(main())


def test_a_time_out_names_who_is_missing_and_takes_its_own_key_away(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (client, session):
            three = barriers(client, session, namespace)
            other = asyncio.create_task(three[1].enter("b", 20))
            await until(lambda: _here(client, namespace, 1))
            with pytest.raises(BarrierTimeout, match=r"in 0\.5 s: c missing") as late:
                await three[0].enter("a", 0.5)
            assert (late.value.missing, late.value.missing_count, late.value.waited_s) == (("c",), 1, 0.5)
            assert await _here(client, namespace, 1)
            await at_once(three[0].enter("a", 20), three[2].enter("c", 20), other)
            await at_once(*(barrier.leave(20) for barrier in three))

    run(main())


def test_a_time_out_says_how_many_are_missing_where_there_are_no_names(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (client, session):
            with pytest.raises(BarrierTimeout, match="2 of 3 missing") as late:
                await DoubleBarrier(client, session, namespace, 3).enter("anybody", 0.3)
            assert (late.value.missing, late.value.missing_count) == ((), 2)

    run(main())


def test_one_too_many_is_refused(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (client, session):
            four = [DoubleBarrier(client, session, namespace, 3) for _ in range(4)]
            done = await asyncio.gather(
                *(barrier.enter(f"p{i}", 5) for i, barrier in enumerate(four)), return_exceptions=True
            )
            refused = [result for result in done if isinstance(result, BarrierFull)]
            assert [result.count for result in refused] == [3]
            assert await _here(client, namespace, 3)
            with pytest.raises(BarrierFull):
                await DoubleBarrier(client, session, namespace, 3).enter("late", 5)
            inside = [barrier for barrier in four if barrier.inside]
            await at_once(*(barrier.leave(20) for barrier in inside))

    run(main())


def test_a_name_is_one_participants_at_a_time(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = DoubleBarrier(a, ours, namespace, 2), DoubleBarrier(b, theirs, namespace, 2)
            waiting = asyncio.create_task(first.enter("x", 20))
            await until(lambda: _here(a, namespace, 1))
            with pytest.raises(NameTaken) as taken:
                await second.enter("x", 5)
            assert taken.value.name == "x"
            await at_once(waiting, second.enter("y", 20))
            await at_once(first.leave(20), second.leave(20))

    run(main())


def test_what_cannot_be_a_barrier_is_refused_before_etcd_is_asked() -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"]) as client:
            session = Session(client)
            with pytest.raises(SettingsError, match="1 to 2000"):
                DoubleBarrier(client, session, "/b", 0)
            with pytest.raises(SettingsError, match="3 different names"):
                DoubleBarrier(client, session, "/b", 3, ["a", "b", "b"])
            with pytest.raises(SettingsError, match=r"a whole number, not 2\.5"):
                DoubleBarrier(client, session, "/b", 2.5)  # type: ignore[arg-type]  # as from a file of settings
            with pytest.raises(SettingsError, match="are a list"):
                DoubleBarrier(client, session, "/b", 2, "ab")
            barrier = DoubleBarrier(client, session, "/b", 2, ["a", "b"])
            for name, timeout_s in (("c", 1.0), ("a", 0.0), ("a/b", 1.0), ("", 1.0), ("..", 1.0)):
                with pytest.raises(SettingsError):
                    await barrier.enter(name, timeout_s)
            with pytest.raises(SettingsError, match="not inside"):
                await barrier.leave(1)
            with pytest.raises(LeaseLost, match="not entered"):
                await barrier.enter("a", 1)

    run(main())


def test_one_that_dies_inside_counts_as_having_left_and_is_told_so_itself(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints, ttl_s=2) as (b, theirs):
            first, second = DoubleBarrier(a, ours, namespace, 2), DoubleBarrier(b, theirs, namespace, 2)
            await at_once(first.enter("x", 20), second.enter("y", 20))
            lease_id = theirs.lease_id
            leaving = asyncio.create_task(first.leave(20))
            await until(lambda: _here(a, namespace, 1))
            await a.lease_revoke(lease_id)
            await leaving
            await theirs.wait_lost(lease_id)
            assert not second.inside
            with pytest.raises(LeaseLost):
                await second.leave(20)
            await theirs.wait_lease()
            await at_once(first.enter("x", 20), second.enter("y", 20))
            await at_once(first.leave(20), second.leave(20))

    run(main())


def test_one_whose_lease_is_lost_while_it_waits_registers_again(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints, ttl_s=2) as (b, theirs):
            first, second = DoubleBarrier(a, ours, namespace, 2), DoubleBarrier(b, theirs, namespace, 2)
            waiting = asyncio.create_task(second.enter("y", 20))
            await until(lambda: _here(a, namespace, 1))
            before = await newest(a, f"{namespace}/members")
            await a.lease_revoke(theirs.lease_id)
            await until(lambda: _registered_after(a, namespace, before))
            await at_once(first.enter("x", 20), waiting)
            await at_once(first.leave(20), second.leave(20))

    run(main())


def test_who_does_not_leave_in_time_is_named(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (client, session):
            three = barriers(client, session, namespace)
            await at_once(*(barrier.enter(name, 20) for barrier, name in zip(three, NAMES, strict=True)))
            with pytest.raises(BarrierTimeout, match=r"Not all left .*: b, c") as late:
                await three[0].leave(0.3)
            assert set(late.value.missing) == {"b", "c"}
            assert await _here(client, namespace, 2)
            with pytest.raises(BarrierFull):
                await three[0].enter("a", 5)
            await at_once(three[1].leave(20), three[2].leave(20))

    run(main())


def test_the_others_open_it_when_the_last_one_dies_before_it_could(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (client, session):
            barrier = DoubleBarrier(client, session, namespace, 2)
            waiting = asyncio.create_task(barrier.enter("x", 20))
            await until(lambda: _here(client, namespace, 1))
            await client.put(f"{namespace}/members/y", "somebody", lease=session.lease_id)
            assert await waiting == 1
            await client.delete(f"{namespace}/members/y")
            await barrier.leave(20)

    run(main())


def test_lost_replies_change_nothing(etcd: EtcdServer, namespace: str) -> None:
    async def main(proxy: Proxy) -> None:
        async with station([proxy.endpoint]) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = DoubleBarrier(a, ours, namespace, 2), DoubleBarrier(b, theirs, namespace, 2)
            proxy.lose_next_reply(b"members/x")
            waiting = asyncio.create_task(first.enter("x", 20))
            await until(lambda: _here(b, namespace, 1))
            await at_once(waiting, second.enter("y", 20))
            proxy.lose_next_reply(b"members/x")
            await at_once(first.leave(20), second.leave(20))
            assert proxy.statistics().replies_lost == 2
            assert await _here(b, namespace, 0)

    with Proxy("127.0.0.1", etcd.port) as proxy:
        run(main(proxy))


def test_a_registration_that_arrives_after_its_sender_gave_up_leaves_nobody_there(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with station(etcd_server.endpoints, ttl_s=30, timeout_s=0.4) as (client, session):
            barrier = DoubleBarrier(client, session, "/late", 2, ("x", "y"))
            etcd_server.pause()
            began = time.monotonic()
            with pytest.raises(BarrierTimeout) as late:
                await barrier.enter("x", 0.6)
            assert late.value.missing == ("y",)
            assert "x itself could not register" in str(late.value)
            assert isinstance(late.value.__cause__, EtcdUnavailable)
            assert time.monotonic() - began < 1.6 + SLACK_S
            etcd_server.resume()
            await until(lambda: session.statistics().chores == 0)
            assert await _here(client, "/late", 0)
            other = DoubleBarrier(client, session, "/late", 2, ("x", "y"))
            await at_once(barrier.enter("x", 20), other.enter("y", 20))
            await at_once(barrier.leave(20), other.leave(20))

    run(main())


async def _registered_after(client: Client, prefix: str, revision: int) -> bool:
    return await newest(client, f"{prefix}/members") > revision


async def _here(client: Client, prefix: str, count: int) -> bool:
    return len(await keys(client, f"{prefix}/members")) == count


def test_it_can_be_entered_again_after_a_time_out_of_the_callers_own_while_it_tidied_up(
    etcd_server: EtcdServer,
) -> None:
    async def main() -> None:
        async with station(etcd_server.endpoints, timeout_s=1) as (client, session):
            barrier = DoubleBarrier(client, session, "/b", 2)
            etcd_server.pause()
            try:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await barrier.enter("a", 0.3)
            finally:
                etcd_server.resume()
            other = DoubleBarrier(client, session, "/b", 2)
            await at_once(barrier.enter("a", 20), other.enter("b", 20))
            await at_once(barrier.leave(20), other.leave(20))
            assert not await keys(client, "/b/members")

    run(main())
