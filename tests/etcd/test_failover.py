"""Servers that are down, frozen or lost in the middle of a call."""

from __future__ import annotations

import asyncio
import time

import pytest

from async_support import SLACK_S, run, until
from instep.errors import EtcdError, EtcdUnavailable, SettingsError
from instep.etcd import Client, KeyValue, Op
from instep.testing import EtcdServer


def test_an_unreachable_etcd_is_one_sentence_within_the_timeout() -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1", "127.0.0.1:2"], timeout_s=0.8) as client:
            for write in (False, True):
                began = time.monotonic()
                with pytest.raises(EtcdUnavailable) as failed:
                    await (client.put("a", "1") if write else client.get("a"))
                assert time.monotonic() - began < 0.8 + SLACK_S
                message = str(failed.value)
                assert message.startswith("etcd at http://127.0.0.1:")  # which of the two is chance
                for port in (1, 2):
                    assert f"http://127.0.0.1:{port} (connection refused)" in message
                fix = "check that etcd runs there and that the endpoints are right."
                assert message.endswith(f": no answer within 0.8 s; {fix}")
                assert not failed.value.applied_unknown
            assert client.link == "suspended"

    run(main())


def test_a_host_name_that_does_not_resolve_is_named() -> None:
    async def main() -> None:
        async with Client(["http://no-such-host.invalid:2379"], timeout_s=1.5) as client:
            with pytest.raises(EtcdUnavailable, match=r"no-such-host\.invalid:2379"):
                await client.get("a")

    run(main())


def test_each_address_of_a_host_name_is_tried(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([f"localhost:{shared_server.port}"]) as client:
            assert await client.put("named", "1")

    run(main())


def test_calls_continue_at_the_next_endpoint_and_stay_there(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1", shared_server.endpoint]) as client:
            began = time.monotonic()
            assert await client.put("next", "1")
            assert time.monotonic() - began < SLACK_S
            assert client.endpoint == shared_server.endpoint
            await client.get("next")
            assert client.statistics().switches == 1

    run(main())


def test_a_call_waits_for_a_server_that_returns_within_its_timeout(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint], timeout_s=20) as client:
            await client.put("back", "1")
            server.kill()
            starting = asyncio.create_task(asyncio.to_thread(server.start))
            found = await client.get("back")
            assert found is not None
            assert await client.put("back", "2")
            await starting

    run(main())


def test_a_frozen_server_costs_a_read_a_part_of_its_time() -> None:
    async def main(frozen: EtcdServer, other: EtcdServer) -> None:
        async with Client([frozen.endpoint, other.endpoint], timeout_s=2) as client:
            await client.get("frozen")
            frozen.pause()
            try:
                await client.get("frozen")
            finally:
                frozen.resume()
            assert client.endpoint == other.endpoint

    with EtcdServer() as frozen, EtcdServer() as other:
        run(main(frozen, other))


def test_an_unanswered_write_is_not_repeated_and_its_error_says_so(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint], timeout_s=0.5) as client:
            await client.put("once", "1")
            server.pause()
            with pytest.raises(EtcdUnavailable, match="may have been applied") as failed:
                await client.txn([], [Op.put("once", "2")])
            assert failed.value.applied_unknown
            with pytest.raises(EtcdUnavailable, match="no answer"):
                await client.get("once")
            server.resume()
            found = await client.get("once", timeout_s=10)
            assert found is not None
            assert found.version <= 2

    run(main())


def test_a_write_to_a_server_frozen_before_the_first_contact_goes_elsewhere() -> None:
    async def main(frozen: EtcdServer, other: EtcdServer) -> None:
        frozen.pause()
        try:
            async with Client([frozen.endpoint, other.endpoint], timeout_s=4) as client:
                assert await client.put("first", "1")
                assert client.endpoint == other.endpoint
        finally:
            frozen.resume()

    with EtcdServer() as frozen, EtcdServer() as other:
        run(main(frozen, other))


def test_a_connection_replaced_under_a_waiting_write_costs_it_nothing() -> None:
    async def main(frozen: EtcdServer, other: EtcdServer) -> None:
        frozen.pause()
        try:
            async with Client([frozen.endpoint, other.endpoint], timeout_s=8) as client:
                writes = [asyncio.create_task(client.put(f"under/{n}", "1")) for n in range(3)]
                # Without an answer in its half of 0.4 s the read has the connection replaced.
                read = await asyncio.gather(client.get("under/0", timeout_s=0.4), return_exceptions=True)
                assert read[0] is None or isinstance(read[0], KeyValue | EtcdUnavailable)
                assert all(await asyncio.gather(*writes))
        finally:
            frozen.resume()

    with EtcdServer() as frozen, EtcdServer() as other:
        run(main(frozen, other))


@pytest.mark.parametrize("sent", [False, True])
def test_closing_a_client_ends_its_calls_with_an_error(server: EtcdServer, sent: bool) -> None:
    async def main() -> None:
        client = Client([server.endpoint], timeout_s=8)
        if sent:
            await client.put("closed", "1")
        server.pause()
        try:
            calls = [
                asyncio.create_task(call) for call in (client.put("closed", "1"), client.get("closed"), client.status())
            ]
            before = client.statistics().calls
            await until(lambda: client.statistics().calls == before + 3)
            await client.close()
            for call in calls[:2]:
                with pytest.raises(EtcdError, match="client is closed"):
                    await call
            (status,) = await calls[2]
            assert "client is closed" in str(status.error)
        finally:
            server.resume()

    run(main())


def test_a_write_of_an_idle_client_is_not_lost_in_a_frozen_server() -> None:
    async def main(frozen: EtcdServer, other: EtcdServer) -> None:
        async with Client([frozen.endpoint, other.endpoint], timeout_s=2) as client:
            await client.put("idle", "1")
            frozen.pause()
            connection = client._transport.pool.connection()
            await until(lambda: not connection.fresh)
            try:
                assert await client.put("idle", "2")
            finally:
                frozen.resume()
            assert client.endpoint == other.endpoint

    with EtcdServer() as frozen, EtcdServer() as other:
        run(main(frozen, other))


def test_an_idle_client_survives_a_restart(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint], timeout_s=10) as client:
            await client.put("idle", "1")
            await asyncio.to_thread(server.restart)

            async def written() -> bool:
                try:
                    return bool(await client.put("idle", "2"))
                except EtcdUnavailable:
                    return False

            await until(written)

    run(main())


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "ftp://a:1",
        "http://",
        "a:notaport",
        "http://a:1/path",
        "http://user@a:1",
        "a:0",
        "a:70000",
        "http://a b",
    ],
)
def test_an_invalid_endpoint_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(SettingsError):
        Client([endpoint])


def test_endpoints_may_leave_out_scheme_and_port() -> None:
    assert Client(["etcd"]).endpoint == "http://etcd:2379"
    assert Client(["[::1]:1"]).endpoint == "http://[::1]:1"
    assert Client(["https://etcd/"]).endpoint == "https://etcd:2379"
    with pytest.raises(SettingsError, match="at least one"):
        Client([])
    with pytest.raises(SettingsError, match="more than 0 s"):
        Client(["etcd"], timeout_s=0)


def test_diagnosing_a_failed_connection_does_not_exceed_the_timeout() -> None:
    """A server that closes the first connection and then sends nothing might use TLS; the diagnosis takes seconds."""

    async def main() -> None:
        met: list[asyncio.BaseTransport] = []

        class HangsUpOnce(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                met.append(transport)
                if len(met) == 1:
                    transport.close()

        silent = await asyncio.get_running_loop().create_server(HangsUpOnce, "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        async with Client([f"http://127.0.0.1:{port}"], timeout_s=0.5) as client:
            began = time.monotonic()
            with pytest.raises(EtcdUnavailable):
                await client.get("lr")
            took_s = time.monotonic() - began
        silent.close()
        for transport in met:
            transport.close()
        assert len(met) > 1
        assert took_s < 0.5 + SLACK_S

    run(main())
