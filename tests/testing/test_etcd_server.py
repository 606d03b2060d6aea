"""A real etcd starts, is broken in every way that a test may want, and recovers with its data."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from instep.errors import EtcdError, SettingsError
from instep.etcd_server.health import wait_until
from instep.etcd_server.process import _spawner
from instep.testing import EtcdServer, etcd_versions


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize("version", [binary.version for binary in etcd_versions()])
def test_each_version_at_hand_starts_and_keeps_its_data_when_killed(version: str) -> None:
    with EtcdServer(version=version) as server:
        server.etcdctl("put", "lr", "0.0003")
        endpoint = server.endpoint
        server.kill()
        assert not server.healthy
        server.restart()
        assert server.version == version
        assert server.endpoint == endpoint
        assert server.etcdctl("get", "lr", "--print-value-only") == "0.0003"


def test_a_stopped_server_starts_again_with_its_data(etcd_server: EtcdServer) -> None:
    etcd_server.etcdctl("put", "lr", "1")
    etcd_server.stop()
    assert not etcd_server.running
    etcd_server.start()
    assert etcd_server.etcdctl("get", "lr", "--print-value-only") == "1"


def test_a_paused_server_keeps_its_port_open_and_answers_nothing_until_resumed(
    etcd_server: EtcdServer,
) -> None:
    etcd_server.pause()
    assert etcd_server.running
    assert not etcd_server.healthy
    etcd_server.resume()
    assert wait_until(lambda: etcd_server.healthy, timeout_s=10)


def test_a_paused_server_can_be_stopped(etcd_server: EtcdServer) -> None:
    etcd_server.pause()
    etcd_server.stop()
    assert not etcd_server.running


def test_closing_ends_the_process_and_removes_its_files() -> None:
    with EtcdServer() as server:
        pid, log = server.pid, server.log
    assert gone(pid)
    assert not log.parent.exists()
    with pytest.raises(EtcdError, match="closed"):
        server.start()


def test_a_server_that_is_dropped_without_being_closed_ends() -> None:
    server = EtcdServer().start()
    pid, log = server.pid, server.log
    del server
    assert gone(pid)
    assert not log.parent.exists()


def test_data_in_a_given_folder_outlives_the_server(tmp_path: Path) -> None:
    with EtcdServer(data_dir=tmp_path / "data", name="one") as server:
        server.etcdctl("put", "lr", "1")
    with EtcdServer(data_dir=tmp_path / "data", name="one") as server:
        assert server.etcdctl("get", "lr", "--print-value-only") == "1"


def test_a_port_that_is_taken_is_refused_at_once(etcd_server: EtcdServer) -> None:
    with pytest.raises(EtcdError, match=f"port {etcd_server.port} .* is taken"):
        EtcdServer(etcd_server.port).start()


def test_a_free_port_that_was_asked_for_is_used(etcd_server: EtcdServer) -> None:
    port = etcd_server.port
    etcd_server.close()
    with EtcdServer(port) as server:
        assert server.endpoint == f"http://127.0.0.1:{port}"


def test_ports_taken_during_a_start_are_replaced_a_bounded_number_of_times() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"--listen-metrics-urls=http://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(EtcdError, match="address already in use"):
            EtcdServer(extra_args=[taken]).start()


def test_a_server_that_ends_instead_of_serving_shows_the_end_of_its_log() -> None:
    with pytest.raises(EtcdError, match=r"(?s)ended with status .*no-such-flag"):
        EtcdServer(extra_args=["--no-such-flag"]).start()


def test_a_folder_that_cannot_hold_data_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(EtcdError, match=str(tmp_path / "data")):
        EtcdServer(data_dir=tmp_path / "data").start()


def test_the_log_continues_over_a_restart(etcd_server: EtcdServer) -> None:
    before = etcd_server.log.read_text()
    etcd_server.restart()
    after = etcd_server.log.read_text()
    assert after.startswith(before)
    assert len(after) > len(before)


def test_a_server_started_in_a_thread_outlives_the_thread() -> None:
    with EtcdServer() as keep:
        server = EtcdServer()
        thread = threading.Thread(target=server.start)
        thread.start()
        thread.join()
        try:
            assert server.healthy
            assert keep.healthy
        finally:
            server.close()


_PARENT = """
import sys
from instep.testing import EtcdServer
server = EtcdServer().start()
print(server.pid, flush=True)
sys.stdin.read()
"""


def test_the_server_dies_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    assert wait_until(lambda: gone(pid), timeout_s=10)


def test_a_forked_child_that_exits_leaves_the_server_alone(etcd_server: EtcdServer) -> None:
    code = "import os, sys; from instep.testing import EtcdServer; s = EtcdServer().start(); pid = os.fork()\n"
    code += "if not pid: sys.exit(0)\n"
    code += "os.waitpid(pid, 0); print(s.healthy); s.close()"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.strip() == "True"
    assert etcd_server.healthy


def test_methods_that_need_a_running_server_raise_an_error() -> None:
    server = EtcdServer()
    with pytest.raises(EtcdError, match="has not been started"):
        server.endpoint  # noqa: B018  asking is what fails
    with pytest.raises(EtcdError, match="has not been started"):
        server.etcdctl("get", "lr")
    with pytest.raises(EtcdError, match="is not running"):
        server.pause()
    with pytest.raises(SettingsError, match="no TLS"):
        server.certificates  # noqa: B018  asking is what fails
    assert "not started" in repr(server)
    server.close()
    with pytest.raises(EtcdError, match="this etcd server has been closed"):
        server.etcdctl("get", "lr")


def test_an_invalid_port_is_refused() -> None:
    with pytest.raises(SettingsError, match="from 0 to 65535"):
        EtcdServer(port=70_000)


def test_its_settings_reach_a_client_process_through_the_environment(etcd: EtcdServer) -> None:
    assert etcd.environment() == {"INSTEP_ETCD": etcd.endpoint}
    assert etcd.endpoints == [etcd.endpoint]


def test_etcdctl_raises_an_error_with_its_output_or_returns_it(etcd: EtcdServer) -> None:
    with pytest.raises(EtcdError, match="unknown command"):
        etcd.etcdctl("no-such-command")
    assert "unknown command" in etcd.etcdctl("no-such-command", check=False)


def test_endpoints_given_to_etcdctl_replace_the_servers_own(etcd: EtcdServer) -> None:
    with pytest.raises(EtcdError, match="failed"):
        etcd.etcdctl("--endpoints=http://127.0.0.1:1", "--command-timeout=200ms", "get", "a")


def test_etcdctl_ignores_the_users_own_settings(etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", "http://127.0.0.1:1")
    assert "is healthy" in etcd.etcdctl("endpoint", "health", check=False)


def test_the_plugin_gives_each_test_a_namespace_of_its_own(namespace: str, request: pytest.FixtureRequest) -> None:
    assert namespace.startswith("/test-")
    assert not namespace.endswith("/")
    assert request.getfixturevalue("namespace") == namespace


def test_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, pytest; before = set(sys.modules); import instep.testing.fixtures\n"
    code += "print(*(set(sys.modules) - before))"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=dict(os.environ),
    )
    assert not {"grpc", "torch", "trustme", "ssl", "instep.testing._server"} & set(answer.stdout.split())


def test_a_process_that_no_caller_waits_for_is_ended() -> None:
    """Ctrl-C may arrive just while a server is being started."""
    interrupted = threading.Event()
    started: list[subprocess.Popen[bytes]] = []

    def spawn() -> subprocess.Popen[bytes]:
        for _ in range(3):  # one that arrives while Python finalizes an object is lost
            os.kill(os.getpid(), signal.SIGINT)
            if interrupted.wait(3):
                break
        started.append(subprocess.Popen(["sleep", "60"]))
        return started[0]

    with pytest.raises(KeyboardInterrupt):
        _spawner().call(spawn)
    interrupted.set()
    assert wait_until(lambda: bool(started) and started[0].poll() is not None, timeout_s=10)


def test_an_argument_that_is_no_text_is_an_error_and_the_next_server_starts() -> None:
    with pytest.raises(TypeError, match="int"):
        EtcdServer(extra_args=["--max-txn-ops", 128]).start()  # type: ignore[list-item]  # the mistake that is made
    with EtcdServer() as server:
        assert server.running


@pytest.mark.parametrize("another_cluster", [False, True])
def test_a_server_restored_from_a_snapshot_serves_its_contents(another_cluster: bool) -> None:
    with EtcdServer() as server:
        server.etcdctl("put", "k", "old")
        before, backup = server.status(), server.snapshot()
        server.etcdctl("put", "k", "new")
        server.restore(backup, another_cluster=another_cluster)
        assert server.etcdctl("get", "--print-value-only", "k") == "old"
        after = server.status()
        assert after.revision == before.revision
        assert (after.member != before.member) == another_cluster  # made of the cluster's token too


def test_a_wiped_server_is_empty_and_lets_the_same_users_in() -> None:
    with EtcdServer(auth="ada:secret") as server:
        endpoint = server.endpoint
        server.etcdctl("put", "k", "v")
        server.wipe()
        assert server.endpoint == endpoint
        assert server.etcdctl("get", "--print-value-only", "k") == ""
