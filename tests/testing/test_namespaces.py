"""The members of a cluster with network namespaces lose packets to one another and to their clients."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from instep.errors import SettingsError
from instep.etcd_server.health import is_healthy, wait_until
from instep.testing import EtcdCluster, namespaces_refusal

allowed = pytest.mark.skipif(namespaces_refusal() is not None, reason=str(namespaces_refusal()))


def devices() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()} | {
        path.name for path in Path("/run/netns").glob("*")
    }


@allowed
def test_an_isolated_leader_is_replaced_and_returns_when_packets_pass_again() -> None:
    with EtcdCluster(network="namespaces", tls=True) as cluster:
        made = {name for name in devices() if cluster.members[0].log.parent.name[-8:] in name}
        assert len(made) == 7, "a namespace and a device each, and a bridge"
        old = cluster.leader()
        cluster.isolate(old)
        assert not is_healthy(old.endpoint, cluster.access.context())
        cluster.leader(other_than=old)
        assert cluster.etcdctl("put", "lr", "1") == "OK"
        cluster.heal()
        cluster.wait_healthy()
        other = cluster.followers()[0]
        for member in cluster.members:
            if member is not other:
                cluster.block(member, other)
        assert wait_until(lambda: other.status().leader == 0, timeout_s=10), "it hears nobody, and we hear it"
        cluster.heal()
        other.restart()
        cluster.wait_healthy()
        with pytest.raises(SettingsError, match="proxied=True"):
            cluster.cut_clients(old)
    assert wait_until(lambda: not made & devices(), timeout_s=10)


_PARENT = """
from instep.testing import EtcdCluster
import os, signal
cluster = EtcdCluster(2, network="namespaces")
os.kill(os.getpid(), signal.SIGKILL)
"""


@allowed
def test_namespaces_of_a_killed_process_are_removed_with_its_folder_at_the_next_start(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _PARENT], env=environment, timeout=60, check=False)
    (folder,) = tmp_path.iterdir()
    assert {f"{folder.name}-m1", f"{folder.name}-m2", f"ins{folder.name[-8:]}"} <= devices()
    code = "from instep.testing import EtcdServer; EtcdServer().close()"
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)
    assert wait_until(lambda: not any(folder.name[-8:] in name for name in devices()), timeout_s=10)
    assert list(tmp_path.iterdir()) == []


def test_the_requirements_of_namespaces_are_named_with_the_alternative(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SettingsError, match=r"need root and the program ip: .*proxied=True"):
        EtcdCluster(network="namespaces")


def test_proxies_and_namespaces_exclude_one_another() -> None:
    with pytest.raises(SettingsError, match="not both"):
        EtcdCluster(proxied=True, network="namespaces")


@allowed
def test_an_interrupt_while_namespaces_are_created_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("ip")
    wrapper = tmp_path / "ip"
    wrapper.write_text(f"""#!/bin/sh
{real} "$@"
status=$?
case "$*" in "netns add"*) trap "" INT; kill -INT $PPID; sleep 0.1;; esac
exit $status
""")
    wrapper.chmod(0o755)
    before = devices()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        with pytest.raises(KeyboardInterrupt):
            EtcdCluster(network="namespaces")
    assert wait_until(lambda: devices() <= before, timeout_s=5)
