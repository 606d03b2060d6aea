"""Runs etcdctl against one server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from instep.errors import EtcdError, SettingsError
from instep.etcd_server.binaries import EtcdBinary
from instep.etcd_server.member import MemberSettings

_TIMEOUT_S = 30.0


def run_etcdctl(binary: EtcdBinary, flags: Sequence[str], args: Sequence[str], *, check: bool = True) -> str:
    """Returns what etcdctl prints, without the last newline. A flag in `args` overrides the same one in `flags`.

    With `check`, a failure raises EtcdError with its output; without, its error output is appended to the result.
    """
    if binary.etcdctl is None:
        raise SettingsError(f"there is no etcdctl next to {binary.path}")
    command = f"etcdctl {' '.join(args)}"
    try:
        answer = _run([str(binary.etcdctl), *_without(flags, args), *args])
    except subprocess.TimeoutExpired as error:
        raise EtcdError(f"{command} did not end within {_TIMEOUT_S:g} s") from error
    if check and answer.returncode != 0:
        raise EtcdError(f"{command} failed: {answer.stderr.strip() or answer.stdout.strip()}")
    return (answer.stdout if check else answer.stdout + answer.stderr).removesuffix("\n")


def restore_snapshot(binary: EtcdBinary, snapshot: Path, member: MemberSettings, *, token: str) -> None:
    """Fills the member's empty data folder from a snapshot, as an operator does. Raises EtcdError."""
    if binary.etcdctl is None:
        raise SettingsError(f"there is no etcdctl next to {binary.path}")
    etcdutl = binary.etcdctl.with_name("etcdutl")  # exists from 3.5 on; from 3.6 on, etcdctl cannot restore
    cluster = member.cluster or {member.name: member.advertised_peer_url}
    command = [
        str(etcdutl if os.access(etcdutl, os.X_OK) else binary.etcdctl),
        "snapshot",
        "restore",
        str(snapshot),
        f"--name={member.name}",
        f"--data-dir={member.data_dir}",
        f"--initial-cluster-token={token}",
        "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in cluster.items()),
        f"--initial-advertise-peer-urls={member.advertised_peer_url}",
    ]
    answer = _run(command)
    if answer.returncode != 0:
        raise EtcdError(f"the snapshot {snapshot} cannot be restored: {answer.stderr.strip() or answer.stdout.strip()}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    # etcdctl refuses to run when a setting comes both from its environment and as a flag.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")}
    environment = inherited | {"ETCDCTL_API": "3"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)


def _without(flags: Sequence[str], args: Sequence[str]) -> list[str]:
    """The flags that `args` does not repeat: etcdctl merges lists, such as endpoints, that are given twice."""
    given = {arg.partition("=")[0] for arg in args if arg.startswith("--")}
    return [flag for flag in flags if flag.partition("=")[0] not in given]
