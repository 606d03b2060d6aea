"""Slows the disk of a process, with strace."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from instep.errors import SettingsError
from instep.etcd_server.health import wait_until
from instep.etcd_server.process import ServerProcess

_ATTACH_TIMEOUT_S = 5.0
_SLOWEST_MS = 60_000


@functools.cache
def slow_disk_refusal() -> str | None:
    """Why the disk of a member cannot be slowed on this machine, with the fix; None if it can.

    For skipping tests: `pytest.mark.skipif(slow_disk_refusal() is not None, reason=str(slow_disk_refusal()))`. It tries
    once per process, on a child process, which takes about 0.1 s.
    """
    with tempfile.TemporaryDirectory(prefix="instep-strace-") as folder:
        child = subprocess.Popen(["sleep", "60"])
        try:
            slowed(child.pid, 1, Path(folder) / "log").stop()
        except SettingsError as refusal:
            return str(refusal)
        finally:
            child.kill()
            child.wait()
    return None


def slowed(pid: int, delay_ms: int, log: Path) -> ServerProcess:
    """A running strace that delays each fsync and fdatasync of a process until it is stopped.

    Returns when every thread is traced. Raises SettingsError, with the fix, if tracing is not possible.
    """
    if not 0 < delay_ms <= _SLOWEST_MS:
        raise SettingsError(f"the delay of a slow disk must be between 1 and {_SLOWEST_MS} ms, not {delay_ms}")
    strace = shutil.which("strace")
    if strace is None:
        raise SettingsError("slowing a disk needs strace, which is not on PATH: install strace")
    process = ServerProcess(_command(strace, pid, delay_ms), log=log)
    settled = wait_until(lambda: process.exit_status is not None or _is_traced(pid), timeout_s=_ATTACH_TIMEOUT_S)
    if not settled or process.exit_status is not None:
        process.stop()
        raise SettingsError(
            f"strace cannot slow the disk of process {pid} ({process.log_tail(3) or 'it did not attach'}): "
            "run as root, or allow ptrace (kernel.yama.ptrace_scope=0; in a container the capability SYS_PTRACE)"
        )
    return process


def _command(strace: str, pid: int, delay_ms: int) -> list[str]:
    calls = "fsync,fdatasync"
    injection = f"inject={calls}:delay_enter={delay_ms * 1000}"
    return [strace, "-f", "-q", "-o", "/dev/null", "-p", str(pid), "-e", f"trace={calls}", "-e", injection]


def _is_traced(pid: int) -> bool:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return False
    return all("TracerPid:\t0\n" not in _status(task) for task in tasks)


def _status(task: Path) -> str:
    try:
        return (task / "status").read_text()
    except OSError:
        return ""  # it has ended
