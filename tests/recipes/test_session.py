"""A session: one lease, the keys on it, and how far it can be relied on."""

from __future__ import annotations

import asyncio
import time

import pytest

from async_support import SLACK_S, run, until
from instep.errors import EtcdUnavailable, LeaseLost, SettingsError
from instep.etcd import Client
from instep.recipes import LinkState, Session
from instep.testing import EtcdServer


def test_keys_on_a_session_end_with_it(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with Client([etcd.endpoint]) as client:
            async with Session(client, ttl_s=60) as session:
                assert (session.link, session.valid) == ("connected", True)
                await client.put(f"{namespace}/a", "1", lease=session.lease_id)
            assert await client.get(f"{namespace}/a") is None
            assert (session.link, session.lease_id) == ("lost", 0)
            with pytest.raises(LeaseLost, match="has ended"):
                await session.wait_lease()

    run(main())


def test_a_session_that_cannot_start_raises_the_reason_in_the_clients_timeout() -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"], timeout_s=0.5) as client:
            began = time.monotonic()
            with pytest.raises(EtcdUnavailable, match="no answer within"):
                await Session(client).__aenter__()
            assert time.monotonic() - began < 0.5 + SLACK_S

    run(main())


def test_a_ttl_that_etcd_would_not_grant_is_refused_at_once() -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"]) as client:
            with pytest.raises(SettingsError, match="too short"):
                Session(client, ttl_s=1)

    run(main())


def test_a_ttl_that_is_not_in_whole_seconds_is_refused() -> None:
    for ttl_s in (2.5, True, "10"):
        with pytest.raises(SettingsError, match="whole seconds"):
            Session(Client(["127.0.0.1:1"]), ttl_s=ttl_s)  # type: ignore[arg-type]  # as from a file of settings


def test_a_server_that_freezes_suspends_and_then_loses_the_link_and_gives_a_new_lease(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        heard: list[LinkState] = []
        leases: list[int] = []

        async def write(lease_id: int) -> None:
            leases.append(lease_id)
            await client.put("on/a/lease", "1", lease=lease_id)

        async with Client([etcd_server.endpoint], timeout_s=1) as client:
            async with Session(client, ttl_s=3, on_lease=write, on_link=heard.append) as session:
                first = session.lease_id
                etcd_server.pause()
                try:
                    assert await session.wait_link("suspended", "lost") == "suspended"
                    assert session.valid
                    await session.wait_link("lost")
                    assert session.lease_id == 0
                finally:
                    etcd_server.resume()
                await session.wait_lost(first)
                second = await session.wait_lease()
                assert second != first
                await until(lambda: len(leases) == 2)
                assert leases == [first, second]
                await until(lambda: _stands_on(client, second))
                assert session.owns(first)
                assert session.owns(second)
            assert heard == ["connected", "suspended", "lost", "connected", "lost"]
            statistics = session.statistics()
            assert (statistics.leases, statistics.losses, statistics.suspensions) == (2, 1, 1)

    run(main())


async def _stands_on(client: Client, lease_id: int) -> bool:
    found = await client.get("on/a/lease")
    return found is not None and found.lease == lease_id


def test_a_short_freeze_only_suspends(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([etcd_server.endpoint]) as client, Session(client, ttl_s=6) as session:
            lease_id = session.lease_id
            etcd_server.pause()
            await session.wait_link("suspended")
            etcd_server.resume()
            await session.wait_link("connected")
            assert session.lease_id == lease_id

    run(main())


def test_a_lease_revoked_by_others_is_replaced(etcd: EtcdServer) -> None:
    async def main() -> None:
        async with Client([etcd.endpoint]) as client, Session(client, ttl_s=2) as session:
            first = session.lease_id
            await client.lease_revoke(first)
            await session.wait_lost(first)
            assert await session.wait_lease() != first

    run(main())


def test_a_process_stopped_beyond_the_ttl_sees_at_once_that_its_lease_is_lost(etcd: EtcdServer) -> None:
    async def main() -> None:
        async with Client([etcd.endpoint]) as client, Session(client, ttl_s=2) as session:
            assert session.valid
            time.sleep(2.1)  # noqa: ASYNC251  # nothing of this process runs meanwhile: that is the fault
            assert (session.link, session.lease_id) == ("lost", 0)

    run(main())


def test_a_callback_for_each_lease_can_be_removed(etcd: EtcdServer) -> None:
    async def main() -> None:
        leases: list[int] = []

        async def write(lease_id: int) -> None:
            leases.append(lease_id)

        async with Client([etcd.endpoint]) as client, Session(client, ttl_s=2) as session:
            end = session.each_lease(write)
            first = session.lease_id
            await client.lease_revoke(first)
            await session.wait_lost(first)
            second = await session.wait_lease()
            await until(lambda: leases == [second])
            end()
            end()
            await client.lease_revoke(second)
            await session.wait_lost(second)
            await session.wait_lease()
            assert leases == [second]

    run(main())


def test_an_error_in_on_link_does_not_end_the_lease(etcd: EtcdServer, caplog: pytest.LogCaptureFixture) -> None:
    def fail(link: LinkState) -> None:
        raise RuntimeError(link)

    async def main() -> None:
        async with Client([etcd.endpoint]) as client, Session(client, on_link=fail) as session:
            assert session.valid
            assert "connected" in repr(session)

    run(main())
    assert "on_link('connected') failed" in caplog.text


def test_a_background_task_outlives_its_caller_and_ends_with_the_session(etcd: EtcdServer) -> None:
    async def main() -> None:
        done: list[str] = []

        async def background_task(text: str) -> None:
            done.append(text)

        async def never() -> None:
            await asyncio.Event().wait()

        async with Client([etcd.endpoint]) as client:
            async with Session(client) as session:
                session.background_task(background_task("a"))
                session.background_task(never())
                await until(lambda: done == ["a"])
                assert session.statistics().background_tasks == 1
            assert session.background_task(background_task("b")) is None

    run(main())


def test_waiting_for_a_link_state_raises_when_the_session_ends(etcd: EtcdServer) -> None:
    async def main() -> None:
        async with Client([etcd.endpoint]) as client:
            async with Session(client) as session:
                waiting = asyncio.create_task(session.wait_link("suspended"))
                await asyncio.sleep(0)  # it waits
            with pytest.raises(LeaseLost, match="has ended"):
                await waiting
            with pytest.raises(LeaseLost, match="has ended"):
                await session.wait_link("connected", "suspended")
            assert await session.wait_link("lost") == "lost"

    run(main())


@pytest.mark.parametrize("wanted", [(), ("conected",), ("lost", "gone")])
def test_an_unknown_link_state_is_refused(wanted: tuple[LinkState, ...]) -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"]) as client:
            with pytest.raises(SettingsError, match="connected, suspended, lost"):
                await Session(client).wait_link(*wanted)

    run(main())


def test_an_error_in_a_callback_at_a_later_lease_does_not_end_the_session(
    etcd: EtcdServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        leases: list[int] = []

        async def write(lease_id: int) -> None:
            leases.append(lease_id)
            if len(leases) == 1:
                raise RuntimeError("not this time")

        async with Client([etcd.endpoint]) as client, Session(client) as session:
            session.each_lease(write)
            first = session.lease_id
            await client.lease_revoke(first)
            await session.wait_lost(first)
            await until(lambda: len(leases) == 2)
            assert await session.wait_lease() == leases[1]

    run(main())
    assert "not this time" in caplog.text


def test_an_error_in_a_callback_at_the_first_lease_is_raised(etcd: EtcdServer) -> None:
    async def fail(lease_id: int) -> None:
        raise RuntimeError("never")

    async def main() -> None:
        async with Client([etcd.endpoint]) as client:
            with pytest.raises(RuntimeError, match="never"):
                await Session(client, on_lease=fail).__aenter__()

    run(main())


def test_an_error_at_the_first_lease_is_raised_even_with_a_background_task(etcd: EtcdServer) -> None:
    async def write(_lease_id: int) -> None:
        session.background_task(asyncio.sleep(60))  # ended with the session
        raise ValueError("the user's own")

    async def main() -> None:
        nonlocal session
        async with Client([etcd.endpoint]) as client:
            session = Session(client, on_lease=write)
            with pytest.raises(ValueError, match="the user's own"):
                async with session:
                    pytest.fail("it was entered")

    session: Session
    run(main())
