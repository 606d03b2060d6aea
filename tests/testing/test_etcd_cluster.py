"""A real cluster starts, is broken member by member, and recovers with its data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from instep.errors import EtcdError, EtcdUnavailable, SettingsError
from instep.etcd_server.health import wait_until
from instep.testing import EtcdCluster, EtcdMember, EtcdServer, etcd_versions, slow_disk_refusal

VERSIONS = [binary.version for binary in etcd_versions()]


@pytest.fixture(scope="module")
def calm_cluster() -> Iterator[EtcdCluster]:
    """A cluster that the tests of this module share and do not break."""
    with EtcdCluster() as cluster:
        yield cluster


def thread_states(pid: int) -> set[str]:
    stats = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in stats}


def revision(member: EtcdMember) -> int:
    try:
        return member.status().revision
    except EtcdError:
        return 0


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_at_hand_elects_a_leader_and_another_when_that_is_killed(version: str) -> None:
    with EtcdCluster(version=version) as cluster:
        assert cluster.version == version
        cluster.etcdctl("put", "lr", "0.0003")
        endpoints, killed = cluster.endpoints, cluster.leader()
        killed.kill()
        assert cluster.leader() is not killed
        assert cluster.etcdctl("get", "lr", "--print-value-only") == "0.0003"
        killed.restart()
        cluster.wait_healthy()
        assert killed.healthy
        assert cluster.endpoints == endpoints


def test_one_member_leads_and_the_others_follow(calm_cluster: EtcdCluster) -> None:
    leader, followers = calm_cluster.leader(), calm_cluster.followers()
    assert {leader, *followers} == set(calm_cluster.members)
    assert leader not in followers
    assert [member.name for member in calm_cluster.members] == ["m1", "m2", "m3"]
    assert leader.status().leader == leader.status().member == followers[0].status().leader


def test_clients_reach_every_member(calm_cluster: EtcdCluster) -> None:
    assert calm_cluster.environment() == {"INSTEP_ETCD": ",".join(calm_cluster.endpoints)}
    calm_cluster.etcdctl("put", "everywhere", "1")
    for member in calm_cluster.members:
        assert calm_cluster.etcdctl(f"--endpoints={member.endpoint}", "get", "everywhere", "--print-value-only") == "1"


def test_its_repr_describes_it(calm_cluster: EtcdCluster) -> None:
    assert repr(calm_cluster) == f"<EtcdCluster {calm_cluster.version} 3 of 3 members running>"
    member = calm_cluster.members[0]
    assert repr(member) == f"<EtcdMember m1 {member.version} {member.endpoint} pid {member.pid}>"
    assert member.log.read_text().endswith(member.log_tail(5) + "\n")


def test_a_paused_leader_has_no_running_thread_and_is_replaced(etcd_cluster: EtcdCluster) -> None:
    paused = etcd_cluster.leader()
    paused.pause()
    assert thread_states(paused.pid) == {"T"}
    assert paused.running
    assert paused.paused
    assert not paused.healthy
    assert etcd_cluster.leader() is not paused
    assert etcd_cluster.etcdctl("put", "lr", "1") == "OK"
    paused.resume()
    etcd_cluster.wait_healthy()
    assert etcd_cluster.leader() is not paused


def test_a_member_starts_without_a_quorum_and_serves_with_one(etcd_cluster: EtcdCluster) -> None:
    etcd_cluster.kill()
    assert not any(member.running for member in etcd_cluster.members)
    first, second, third = etcd_cluster.members
    assert first.start() is first
    assert not first.healthy
    with pytest.raises(EtcdUnavailable, match=r"no leader for 0\.3 s"):
        etcd_cluster.leader(timeout_s=0.3)
    with pytest.raises(EtcdError, match=r"did not serve within 0\.3 s"):
        first.wait_healthy(0.3)
    second.start()
    first.wait_healthy()
    assert etcd_cluster.leader() is not third
    with pytest.raises(EtcdError, match="m3 is not running"):
        etcd_cluster.wait_healthy()


def test_a_cluster_that_is_stopped_whole_starts_again_with_its_data(etcd_cluster: EtcdCluster) -> None:
    etcd_cluster.etcdctl("put", "lr", "1")
    etcd_cluster.stop()
    assert not any(member.running for member in etcd_cluster.members)
    etcd_cluster.start()
    assert all(member.healthy for member in etcd_cluster.members)
    assert etcd_cluster.etcdctl("get", "lr", "--print-value-only") == "1"


def test_compaction_drops_the_history_and_defragmentation_keeps_the_data(etcd_cluster: EtcdCluster) -> None:
    for number in range(5):
        etcd_cluster.etcdctl("put", "lr", str(number))
    newest = max(member.status().revision for member in etcd_cluster.members)
    assert etcd_cluster.compact(newest - 2) == newest - 2
    with pytest.raises(EtcdError, match="compacted"):
        etcd_cluster.etcdctl("get", "lr", f"--rev={newest - 3}")
    assert etcd_cluster.compact() == newest
    for member in etcd_cluster.members:
        etcd_cluster.defragment(member)
    assert etcd_cluster.etcdctl("get", "lr", "--print-value-only") == "4"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cluster_with_tls_and_users_reports_its_leader(version: str) -> None:
    with EtcdCluster(version=version, tls=True, auth="alice:secret") as cluster:
        cluster.leader().kill()
        cluster.leader().status()
        assert cluster.etcdctl("put", "lr", "1") == "OK"
        assert "tls auth" in repr(cluster)
        assert {"INSTEP_CERT", "INSTEP_PASSWORD_FILE"} <= cluster.environment().keys()


def test_a_cluster_of_one_member_works() -> None:
    with EtcdCluster(1) as cluster:
        assert cluster.leader() is cluster.members[0]
        assert cluster.followers() == ()


def test_a_cluster_without_members_is_refused() -> None:
    with pytest.raises(SettingsError, match="at least one member"):
        EtcdCluster(0)


def test_methods_that_need_a_started_cluster_raise_an_error() -> None:
    cluster = EtcdCluster()
    with pytest.raises(EtcdError, match="has not been started"):
        cluster.members  # noqa: B018  asking is what fails
    with pytest.raises(EtcdError, match="has not been started"):
        cluster.etcdctl("get", "lr")
    assert "not started" in repr(cluster)
    cluster.close()
    with pytest.raises(EtcdError, match="this etcd cluster has been closed"):
        cluster.etcdctl("get", "lr")


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(SettingsError, match=r'"loopback" or "namespaces", not .namespace.$'):
        EtcdCluster(network="namespace")  # type: ignore[arg-type]  # a slip of the pen


def test_a_member_that_ends_instead_of_serving_shows_the_end_of_its_log() -> None:
    with pytest.raises(EtcdError, match=r"(?s)ended with status .*no-such-flag"):
        EtcdCluster(extra_args=["--no-such-flag"]).start()


def test_closing_ends_all_members_and_removes_their_files(etcd_cluster: EtcdCluster) -> None:
    members = etcd_cluster.members
    members[0].pause()
    members[1].kill()
    etcd_cluster.close()
    assert not any(member.running for member in members)
    assert not members[0].log.parent.exists()
    with pytest.raises(EtcdError, match="closed"):
        members[0].start()
    with pytest.raises(EtcdError, match="closed"):
        etcd_cluster.etcdctl("get", "lr")


_PARENT = """
import sys
from instep.testing import EtcdCluster
cluster = EtcdCluster(proxied=True).start()
print(*[member.pid for member in cluster.members], flush=True)
sys.stdin.read()
"""
_NEXT = """
from instep.testing import EtcdServer
EtcdServer().close()
"""


def test_members_die_with_a_killed_parent_and_the_next_process_removes_its_files(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        subprocess.run([sys.executable, "-c", _NEXT], env=environment, check=True, timeout=60)
        assert len(list(tmp_path.glob("instep-etcd-*"))) == 1, "those of a living owner stay"
        parent.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids), timeout_s=10)
    subprocess.run([sys.executable, "-c", _NEXT], env=environment, check=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(slow_disk_refusal() is not None, reason=str(slow_disk_refusal()))
def test_a_slow_disk_delays_each_write_until_it_is_released() -> None:
    def put() -> float:
        began = time.monotonic()
        server.etcdctl("put", "lr", "1")
        return time.monotonic() - began

    with EtcdServer(fsync=True) as server:
        with server.slow_disk(400):
            # A lone member of 3.5.0 to 3.5.4 answers before it has synced (etcd #14370): then the next write waits.
            assert put() + put() >= 0.4
            assert server.healthy
        assert min(put() for _ in range(3)) < 0.4
        with server.slow_disk(50):
            server.kill()
        server.restart()
        assert server.healthy


def test_a_server_that_does_not_wait_for_its_disk_cannot_be_slowed_by_it(calm_cluster: EtcdCluster) -> None:
    with pytest.raises(SettingsError, match="fsync=True"), calm_cluster.members[0].slow_disk(10):
        pass


def test_a_machine_without_strace_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with (
        EtcdServer(fsync=True) as server,
        pytest.raises(SettingsError, match="install strace"),
        server.slow_disk(10),
    ):
        pass


def test_the_plugin_gives_a_cluster_of_three(etcd_cluster: EtcdCluster) -> None:
    assert len(etcd_cluster.members) == 3
    assert all(revision(member) == 1 for member in etcd_cluster.members)
