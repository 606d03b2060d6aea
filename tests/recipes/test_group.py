"""The group: its members, each on its own session's lease."""

from __future__ import annotations

import asyncio
import time

import pytest
from recipe_support import keys, station

from async_support import SLACK_S, run, until
from instep.errors import EtcdUnavailable, NameTaken, SettingsError
from instep.etcd import Client
from instep.recipes import Group, GroupMember, Session
from instep.testing import EtcdServer, Proxy


def test_members_join_and_leave_and_are_listed(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = Group(a, ours, namespace), Group(b, theirs, namespace)
            assert await _values(first) == {}
            await first.join("x", "host a")
            await second.join("y", "host b")
            assert await _values(first) == {"x": "host a", "y": "host b"}
            await second.join("y", "host c")
            assert await _values(first) == {"x": "host a", "y": "host c"}
            await second.leave()
            assert await _values(first) == {"x": "host a"}
            assert (first.joined, second.joined) == (True, False)
            assert second.statistics().joins == 1
            await second.leave()

    run(main())


def test_a_session_that_ends_removes_its_member(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with Client(etcd.endpoints) as client:
            async with station(etcd.endpoints) as (other, session):
                await Group(other, session, namespace).join("x")
                assert len(await keys(client, namespace)) == 1
            assert await keys(client, namespace) == []

    run(main())


def test_a_name_has_one_holder_and_no_member_is_evicted(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = Group(a, ours, namespace), Group(b, theirs, namespace)
            await first.join("x", "first")
            with pytest.raises(NameTaken) as taken:
                await second.join("x", "second")
            assert taken.value.name == "x"
            assert (await second.members())["x"].value == "first"
            await first.leave()
            await second.join("x", "second")
            assert (await first.members())["x"].value == "second"
            with pytest.raises(SettingsError, match="'x' already"):
                await second.join("y")

    run(main())


def test_a_member_whose_lease_was_lost_comes_back_by_itself(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, _), station(etcd.endpoints, ttl_s=2) as (b, theirs):
            group = Group(b, theirs, namespace)
            await group.join("x", "here")
            before = (await group.members())["x"]
            await a.lease_revoke(theirs.lease_id)
            await until(lambda: group.statistics().rejoins == 1)
            after = (await group.members())["x"]
            assert after == GroupMember("x", "here", after.token)
            assert after.token > before.token
            assert group.joined
            await group.leave()
            await a.lease_revoke(theirs.lease_id)
            await until(lambda: theirs.statistics().leases == 3)
            assert await group.members() == {}

    run(main())


def test_a_member_whose_name_was_taken_stays_away_and_logs_it(
    etcd: EtcdServer, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(way: Proxy) -> None:
        async with station(etcd.endpoints) as (a, ours), station([way.endpoint], ttl_s=2) as (b, theirs):
            first, second = Group(a, ours, namespace), Group(b, theirs, namespace)
            await second.join("x", "second")
            way.cut()  # otherwise it might return before the other has joined
            await a.lease_revoke(theirs.lease_id)
            await first.join("x", "first")
            way.heal()
            await until(lambda: second.statistics().replaced == 1)
            assert not second.joined
            assert (await second.members())["x"].value == "first"
            await second.leave()
            assert (await second.members())["x"].value == "first"

    with Proxy("127.0.0.1", etcd.port) as way:
        run(main(way))
    assert "taken while the lease was lost" in caplog.text


def test_a_lost_reply_changes_nothing(etcd: EtcdServer, namespace: str) -> None:
    async def main(proxy: Proxy) -> None:
        async with station([proxy.endpoint]) as (client, session):
            group = Group(client, session, namespace)
            proxy.lose_next_reply(b"in the txn")
            await group.join("x", "in the txn")
            assert proxy.statistics().replies_lost == 1
            assert group.joined
            await group.leave()
            assert await keys(client, namespace) == []

    with Proxy("127.0.0.1", etcd.port) as proxy:
        run(main(proxy))


def test_a_join_that_arrives_after_its_caller_gave_up_leaves_no_member(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with station(etcd_server.endpoints, ttl_s=30, timeout_s=0.4) as (client, session):
            group = Group(client, session, "/late")
            etcd_server.pause()
            began = time.monotonic()
            with pytest.raises(EtcdUnavailable, match=r"could not be joined in 0\.6 s"):
                await group.join("x", timeout_s=0.6)
            assert time.monotonic() - began < 1.6 + SLACK_S
            etcd_server.resume()
            await until(lambda: session.statistics().background_tasks == 0)
            assert await keys(client, "/late") == []

    run(main())


def test_a_member_outlives_a_restart(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with station(etcd_server.endpoints, ttl_s=30) as (client, session):
            group = Group(client, session, "/restart")
            await group.join("x", "1")
            etcd_server.kill()
            await asyncio.to_thread(etcd_server.restart)
            await group.join("x", "2")
            assert await _values(group) == {"x": "2"}
            assert group.joined

    run(main())


def test_a_member_that_left_in_an_outage_and_joins_again_stays(etcd_server: EtcdServer, namespace: str) -> None:
    """The removal was left to the session, which must not apply it to the member that has joined since."""

    async def main() -> None:
        async with Client(etcd_server.endpoints, timeout_s=0.3) as client, Session(client) as session:
            group = Group(client, session, namespace)
            await group.join("x", "first")
            etcd_server.pause()
            await group.leave()
            joining = asyncio.ensure_future(group.join("x", "second"))
            await until(lambda: group._ours is not None)
            etcd_server.resume()
            await joining
            await until(lambda: session.statistics().background_tasks == 0)
            assert await _values(group) == {"x": "second"}

    run(main())


async def _values(group: Group) -> dict[str, str]:
    return {name: member.value for name, member in (await group.members()).items()}
