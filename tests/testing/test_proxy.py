"""A proxy passes on what it receives, and fails in each way that a test may want."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plain_server import LIMIT_S, PlainClient, PlainServer

from instep.errors import EtcdError, SettingsError
from instep.etcd_server.health import is_healthy, wait_until
from instep.testing import EtcdServer, LinkStatistics, Proxy


@pytest.fixture
def server() -> Iterator[PlainServer]:
    with PlainServer() as running:
        yield running


@pytest.fixture
def proxy(server: PlainServer) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", server.port) as running:
        yield running


def test_data_passes_both_ways_and_is_counted(proxy: Proxy) -> None:
    with PlainClient(proxy.port) as client:
        assert client.ask("one") == "echo one"
        assert proxy.endpoint == f"127.0.0.1:{proxy.port}"
        assert proxy.statistics() == LinkStatistics(accepted=1, open=1, bytes_up=4, bytes_down=9)


def test_the_end_of_one_direction_leaves_the_other_open(proxy: Proxy, server: PlainServer) -> None:
    with PlainClient(proxy.port) as client:
        client.say("last")
        client.say_no_more()
        assert client.hear() == "echo last"
        assert client.hear() == ""
    assert wait_until(lambda: server.ends == ["closed"], timeout_s=5)
    assert wait_until(lambda: proxy.statistics().open == 0, timeout_s=5)


def test_a_connection_that_is_reset_before_it_is_accepted_is_ignored(proxy: Proxy) -> None:
    loop, go, wrong = proxy._thread.loop, threading.Event(), list[dict[str, Any]]()
    loop.call_soon_threadsafe(loop.set_exception_handler, lambda _, context: wrong.append(context))
    loop.call_soon_threadsafe(go.wait, LIMIT_S)
    with socket.create_connection(("127.0.0.1", proxy.port)) as gone:
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    go.set()
    with PlainClient(proxy.port) as client:
        assert client.ask("one") == "echo one"
    assert wrong == []


def test_a_cut_resets_open_connections_and_refuses_new_ones_until_healed(proxy: Proxy, server: PlainServer) -> None:
    with PlainClient(proxy.port) as client:
        client.ask("one")
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            client.hear()
        assert wait_until(lambda: server.ends == ["reset"], timeout_s=5)
    with pytest.raises(ConnectionRefusedError):
        PlainClient(proxy.port)
    assert "cut" in repr(proxy)
    proxy.heal()
    with PlainClient(proxy.port) as client:
        assert client.ask("two") == "echo two"


def test_a_reset_spares_new_connections(proxy: Proxy) -> None:
    with PlainClient(proxy.port) as old:
        old.ask("one")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            old.hear()
    with PlainClient(proxy.port) as new:
        assert new.ask("two") == "echo two"


def test_a_black_hole_passes_nothing_and_loses_nothing(proxy: Proxy, server: PlainServer) -> None:
    with PlainClient(proxy.port) as old:
        old.ask("one")
        proxy.black_hole()
        with PlainClient(proxy.port) as new:
            for client in (old, new):
                client.say("held")
                assert client.silent()
            assert server.received == ["one"]
            proxy.heal()
            assert [old.hear(), new.hear()] == ["echo held", "echo held"]


def test_an_upward_black_hole_holds_requests_back_and_passes_replies(proxy: Proxy, server: PlainServer) -> None:
    with PlainClient(proxy.port) as client:
        proxy.delay(0.2, ways="down")
        client.say("one")
        assert wait_until(lambda: server.received == ["one"], timeout_s=5)
        proxy.black_hole("up")
        client.say("two")
        assert client.hear() == "echo one"
        assert client.silent()
        assert server.received == ["one"]


def test_a_downward_black_hole_passes_requests_and_holds_replies_back(proxy: Proxy, server: PlainServer) -> None:
    with PlainClient(proxy.port) as client:
        proxy.black_hole("down")
        client.say("one")
        assert wait_until(lambda: server.received == ["one"], timeout_s=5)
        assert client.silent()
        proxy.heal()
        assert client.hear() == "echo one"


def test_a_black_hole_hides_that_the_other_side_is_gone(proxy: Proxy, server: PlainServer) -> None:
    with PlainClient(proxy.port) as client:
        client.ask("one")
        proxy.black_hole()
    assert server.ends == []
    assert proxy.statistics().open == 1
    proxy.heal()
    assert wait_until(lambda: server.ends == ["closed"], timeout_s=5)


def test_a_sender_into_a_black_hole_is_blocked_after_bounded_bytes_and_all_arrive(server: PlainServer) -> None:
    line = "x" * 100_000
    with Proxy("127.0.0.1", server.port) as proxy, PlainClient(proxy.port) as client:
        client.ask("one")
        proxy.black_hole("up")
        sender = threading.Thread(target=lambda: [client.say(line) for _ in range(300)])
        sender.start()
        sender.join(0.5)
        assert sender.is_alive()
        assert proxy.statistics().bytes_up < 2_000_000
        proxy.heal()
        assert all(client.hear() == f"echo {line}" for _ in range(300))
        sender.join(10)
    assert server.received[1:] == [line] * 300


def test_a_delay_holds_for_its_direction_and_keeps_the_order(proxy: Proxy, server: PlainServer) -> None:
    with PlainClient(proxy.port) as client:
        client.ask("zero")
        proxy.delay(0.15, 0.05, "up")
        began = time.monotonic()
        for number in range(20):
            client.say(str(number))
        answers = [client.hear() for _ in range(20)]
        assert 0.15 <= time.monotonic() - began < 2
        assert answers == [f"echo {number}" for number in range(20)]


def test_many_bytes_pass_a_delay_intact(proxy: Proxy) -> None:
    lines = [f"{number} " + "y" * 50_000 for number in range(60)]
    with PlainClient(proxy.port) as client:
        proxy.delay(0.05)
        sender = threading.Thread(target=lambda: [client.say(line) for line in lines])
        sender.start()
        assert [client.hear() for _ in lines] == [f"echo {line}" for line in lines]
        sender.join()


NO_FAULTS: dict[str, Callable[[Any], object]] = {
    "an unknown direction": lambda proxy: proxy.black_hole("upp"),
    "a delay without a direction": lambda proxy: proxy.delay(1, ways=""),
    "a delay of NaN": lambda proxy: proxy.delay(math.nan),
    "an infinite delay": lambda proxy: proxy.delay(math.inf),
    "an infinite jitter": lambda proxy: proxy.delay(1, math.inf),
    "a number as content": lambda proxy: proxy.lose_next_reply(7),
    "a negative number of bytes": lambda proxy: proxy.lose_next_reply(after_bytes=-1),
    "a fraction of a byte": lambda proxy: proxy.lose_next_reply(after_bytes=0.5),
}


@pytest.mark.parametrize("name", NO_FAULTS)
def test_an_invalid_fault_is_refused_and_has_no_effect(proxy: Proxy, name: str) -> None:
    with pytest.raises(SettingsError):
        NO_FAULTS[name](proxy)
    assert "no fault" in repr(proxy)


@pytest.mark.parametrize("port", [-1, 65_536, 80.0, True, "80"])
def test_an_invalid_proxy_port_is_refused(port: Any) -> None:
    with pytest.raises(SettingsError, match="a port is a whole number"):
        Proxy("127.0.0.1", 80, port=port)
    with pytest.raises(SettingsError, match="a port is a whole number"):
        Proxy("127.0.0.1", port)


def test_a_request_can_be_selected_by_text(proxy: Proxy) -> None:
    proxy.lose_next_reply("käse")
    with PlainClient(proxy.port) as client:
        assert client.ask("brot") == "echo brot"
        with pytest.raises(ConnectionError):
            client.ask("käse")
    assert proxy.statistics().replies_lost == 1


def test_a_negative_delay_is_refused(proxy: Proxy) -> None:
    with pytest.raises(SettingsError, match="at least 0 s"):
        proxy.delay(-1)


def test_the_next_reply_is_lost_once_and_its_request_is_not(proxy: Proxy, server: PlainServer) -> None:
    with PlainClient(proxy.port) as client, PlainClient(proxy.port) as other:
        client.ask("one")
        other.ask("one")
        proxy.lose_next_reply(b"key")
        assert other.ask("ke") == "echo ke"
        client.say("the key")
        with pytest.raises(ConnectionResetError):
            client.hear()
        assert server.received[-1] == "the key"
        assert other.ask("another key") == "echo another key"
    assert proxy.statistics().replies_lost == 1
    assert proxy.statistics().bytes_lost == len("echo the key\n")


def test_a_request_is_recognized_across_its_parts(proxy: Proxy, server: PlainServer) -> None:
    with PlainClient(proxy.port) as client:
        client.ask("one")
        proxy.lose_next_reply(b"a\nb")
        client.ask("a")
        client.say("b")
        with pytest.raises(ConnectionResetError):
            client.hear()
    assert server.received == ["one", "a", "b"]


def test_part_of_a_reply_can_pass(proxy: Proxy) -> None:
    with PlainClient(proxy.port) as client:
        proxy.lose_next_reply(after_bytes=9)
        assert client.ask("one") == "echo one"
        client.say("two")
        with pytest.raises(ConnectionResetError):
            client.hear()


def test_a_loss_without_a_matching_request_ends_at_heal(proxy: Proxy) -> None:
    proxy.lose_next_reply(b"never said")
    assert "to be lost" in repr(proxy)
    proxy.heal()
    with PlainClient(proxy.port) as client:
        assert client.ask("never said") == "echo never said"


def ask_once(port: int) -> str:
    with PlainClient(port) as client:
        return client.ask("one")


def test_a_missing_server_costs_a_client_only_its_connection(server: PlainServer) -> None:
    with Proxy("127.0.0.1", 1) as proxy:
        with pytest.raises(ConnectionError):
            ask_once(proxy.port)
        assert wait_until(lambda: proxy.statistics().open == 0, timeout_s=5)


def test_a_proxy_listens_on_the_given_port_unless_it_is_taken(proxy: Proxy, server: PlainServer) -> None:
    port = proxy.port
    proxy.close()
    with Proxy("127.0.0.1", server.port, port=port) as again, PlainClient(port) as client:
        assert again.port == port
        assert client.ask("one") == "echo one"


def test_closing_resets_what_is_open_and_is_final(server: PlainServer) -> None:
    before = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    with Proxy("127.0.0.1", server.port) as proxy:
        client = PlainClient(proxy.port)
        client.ask("one")
    with pytest.raises(ConnectionResetError):
        client.hear()
    client.close()
    proxy.close()
    with pytest.raises(EtcdError, match="closed"):
        proxy.black_hole()
    assert wait_until(lambda: server.ends == ["reset"], timeout_s=5)
    assert wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, timeout_s=5)
    assert wait_until(lambda: threading.active_count() <= threads, timeout_s=5)


def test_etcd_serves_through_a_proxy(etcd: EtcdServer, namespace: str, tmp_path: Path) -> None:
    with Proxy("127.0.0.1", etcd.port) as proxy:
        endpoint = f"http://{proxy.endpoint}"
        assert etcd.etcdctl(f"--endpoints={endpoint}", "put", f"{namespace}/a", "1") == "OK"
        proxy.black_hole("down")
        assert not is_healthy(endpoint)
        proxy.heal()
        assert is_healthy(endpoint)


def test_the_reply_of_an_applied_put_is_lost(etcd: EtcdServer, namespace: str) -> None:
    key = f"{namespace}/once"
    with Proxy("127.0.0.1", etcd.port) as proxy:
        proxy.lose_next_reply(key.encode())
        complaint = etcd.etcdctl(f"--endpoints=http://{proxy.endpoint}", "put", key, "1", check=False)
        assert "OK" not in complaint
        assert etcd.etcdctl("get", key, "--print-value-only") == "1"
        assert proxy.statistics().replies_lost == 1


def test_connections_that_arrive_during_close_are_ended(server: PlainServer) -> None:
    for _ in range(10):
        proxy = Proxy("127.0.0.1", server.port)
        callers = [threading.Thread(target=call_in_vain, args=(proxy.port,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        proxy.close()
        for caller in callers:
            caller.join(LIMIT_S)
        assert not any(caller.is_alive() for caller in callers)
    gc.collect()


def call_in_vain(port: int) -> None:
    with contextlib.suppress(ConnectionError):
        ask_once(port)
