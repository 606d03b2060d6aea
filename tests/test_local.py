"""The local etcd for development: one per user, found fast, its data kept."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from instep import discovery, local
from instep.errors import SettingsError
from instep.etcd_server.health import is_healthy, wait_until
from instep.etcd_server.ports import free_ports


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """A free port, where no local etcd was ever started; the one that the test starts is ended."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    yield free_ports(1, "127.0.0.1")[0]
    local.stop()


NOTHING_IN_IT = json.dumps(dict.fromkeys(["endpoint", "pid", "started", "version", "data_dir", "log"]))


@contextmanager
def process(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own; one that a failed test leaves behind is killed."""
    words = [sys.executable, "-c", f"from instep import local; {code}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def test_nothing_is_found_and_nothing_stopped_when_none_was_started(port: int) -> None:
    assert local.find() is None
    assert local.stop() is False


def test_a_local_etcd_serves_is_found_and_stops(port: int) -> None:
    said: list[str] = []
    started = local.start(port=port, tell=said.append)
    assert started.endpoint == f"http://127.0.0.1:{port}"
    assert is_healthy(started.endpoint)
    assert local.find() == started
    assert started.endpoint in said[0]
    assert local.stop() is True
    assert local.find() is None
    assert not is_healthy(started.endpoint)


def test_a_running_local_etcd_is_returned_and_reported(port: int) -> None:
    first = local.start(port=port)
    said: list[str] = []
    assert local.start(port=port, tell=said.append) == first
    assert "is already running" in said[0]
    assert local.serve(tell=said.append) == first


def test_data_is_synced_and_kept_between_starts_even_on_another_port(port: int) -> None:
    from instep.etcd_server.etcdctl import run_etcdctl
    from instep.testing import find_etcd

    binary = find_etcd()
    first = local.start(port=port)
    assert "--unsafe-no-fsync" not in Path(f"/proc/{first.pid}/cmdline").read_text()
    run_etcdctl(binary, [f"--endpoints={first.endpoint}"], ["put", "lr", "1"])
    local.stop()
    second = local.start(port=free_ports(1, "127.0.0.1")[0])
    assert run_etcdctl(binary, [f"--endpoints={second.endpoint}"], ["get", "lr", "--print-value-only"]) == "1"


def test_a_taken_port_is_replaced_and_reported(port: int) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", port)):
        started = local.start(port=port, tell=said.append)
    assert started.endpoint != f"http://127.0.0.1:{port}"
    assert f"port {port} is taken" in said[0]
    assert local.find() == started


def test_a_local_etcd_outlives_the_process_that_started_it(port: int) -> None:
    with process(f"local.start(port={port})") as starter:
        assert starter.wait(60) == 0
    found = local.find()
    assert found is not None
    assert is_healthy(found.endpoint)


def test_two_simultaneous_starts_yield_one_etcd(port: int) -> None:
    with (
        process(f"print(local.start(port={port}).pid)") as one,
        process(f"print(local.start(port={port}).pid)") as two,
    ):
        assert one.communicate(timeout=60) == two.communicate(timeout=60)


def test_a_crashed_local_etcd_is_not_found_and_can_be_restarted(port: int) -> None:
    crashed = local.start(port=port)
    os.kill(crashed.pid, signal.SIGKILL)
    assert wait_until(lambda: local.find() is None, timeout_s=10)
    assert local.stop() is False
    assert local.start(port=port).pid != crashed.pid


def test_a_paused_local_etcd_can_be_stopped(port: int) -> None:
    os.kill(local.start(port=port).pid, signal.SIGSTOP)
    assert local.stop() is True


def test_another_process_with_its_pid_is_neither_found_nor_stopped(port: int) -> None:
    started = local.start(port=port)
    discovery = local.home() / "local.json"
    truth = discovery.read_text()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            discovery.write_text(json.dumps(json.loads(truth) | {"pid": stranger.pid}))
            assert local.find() is None
            assert local.stop() is False
            assert stranger.poll() is None
        finally:
            stranger.kill()
    discovery.write_text(truth)
    assert local.find() == started


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "not json", '{"pid": 1}', NOTHING_IN_IT])
def test_an_invalid_discovery_file_is_ignored(port: int, content: str) -> None:
    local.home().mkdir()
    (local.home() / "local.json").write_text(content)
    assert local.find() is None


def test_a_local_etcd_whose_port_does_not_answer_is_not_found(port: int) -> None:
    started = local.start(port=port)
    silent = replace(started, endpoint=f"http://127.0.0.1:{free_ports(1, '127.0.0.1')[0]}")
    discovery.write(silent)
    assert local.find() is None
    discovery.write(started)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_in_the_foreground_it_serves_until_interrupted(port: int, number: signal.Signals) -> None:
    with process(f"local.serve(port={port})") as server:
        assert wait_until(lambda: local.find() is not None, timeout_s=60)
        server.send_signal(number)
        assert server.wait(30) == 0
    assert local.find() is None
    assert not (local.home() / "local.json").exists()


def test_in_the_foreground_it_exits_cleanly_when_stopped_from_elsewhere(port: int) -> None:
    with process(f"local.serve(port={port})") as server:
        assert wait_until(lambda: local.find() is not None, timeout_s=60)
        assert local.stop() is True
        assert server.wait(30) == 0


def test_in_the_foreground_it_dies_with_its_parent(port: int) -> None:
    with process(f"local.serve(port={port})") as server:
        assert wait_until(lambda: local.find() is not None, timeout_s=60)
        server.kill()
    assert wait_until(lambda: local.find() is None, timeout_s=10)


def test_a_folder_that_is_not_writable_is_refused_with_the_fix(port: int, tmp_path: Path) -> None:
    (tmp_path / "instep").write_text("in the way")
    assert local.find() is None
    with pytest.raises(SettingsError, match="XDG_DATA_HOME"):
        local.start(port=port)


def test_finding_it_needs_the_standard_library_only() -> None:
    words = [sys.executable, "-c", "import sys; from instep.discovery import find; find(); print(*sys.modules)"]
    loaded = set(subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout.split())
    assert not {"grpc", "typer", "rich", "torch", "trustme", "instep.etcd_server.process"} & loaded
