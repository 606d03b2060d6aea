"""Processes of this machine: agents by the folder that they serve, and facts from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

CONNECT_TIMEOUT_S = 1.0
MB = 1e6


def agents_below(folder: Path) -> list[int]:
    """The agents that serve below `folder`, a supervisor before its agent; also those that accept no connection."""
    found: dict[int, int] = {}
    for pid in _all():
        words = command(pid).split(b"\0")
        if b"instep.agent" in words and any(word.startswith(bytes(folder) + b"/") for word in words):
            with contextlib.suppress(OSError):  # it has ended since
                found[pid] = parent_of(pid)
    return sorted(found, key=lambda pid: (found[pid] in found, pid))


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Sends a signal to all of them, in that order. Skips those that have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def server_of(path: Path) -> int | None:
    """The process that listens on a Unix socket; None when no process does."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(CONNECT_TIMEOUT_S)
        probe.connect(str(path))
        return int(struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    return None


def cpu_s(pid: int) -> float:
    """CPU time of all threads so far, in seconds, with nanosecond precision (`stat` has 10 ms)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory_mb(pid: int | str = "self") -> dict[str, float]:
    """`Rss`: all mapped pages; `Pss`: shared pages counted in part; `Private`: what its end would free."""
    fields: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount, *_ = line.split()
        fields[name.rstrip(":")] = int(amount) * 1024 / MB
    private = fields["Private_Clean"] + fields["Private_Dirty"]
    return {"Rss": fields["Rss"], "Pss": fields["Pss"], "Private": private}


def parent_of(pid: int) -> int:
    """The pid of its parent. Raises OSError if it has ended."""
    return int(_stat(pid)[1])


def runs(pid: int) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return _stat(pid)[0] not in ("Z", "X")
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that it has started and that are still in its tree."""
    return [child for child, parent in _parents().items() if parent == pid]


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, without itself and without processes that have left its tree."""
    parents, found = _parents(), [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def command(pid: int) -> bytes:
    """Its command line, words ended by zero bytes; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def marked(mark: str) -> list[int]:
    """All processes that were started with a variable in their environment whose NAME=value begins with `mark`."""
    found = []
    for pid in _all():
        with contextlib.suppress(OSError):  # it has ended since, or is another user's
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if any(item.startswith(mark.encode()) for item in environment):
                found.append(pid)
    return found


def listens(port: int) -> bool:
    """Whether a process of this machine listens on this TCP port."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _number, local, _remote, state, *_ = line.split()
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                return True
    return False


def _all() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _parents() -> dict[int, int]:
    found: dict[int, int] = {}
    for pid in _all():
        with contextlib.suppress(OSError):  # it has ended since
            found[pid] = parent_of(pid)
    return found


def _stat(pid: int) -> list[str]:
    """State, parent and so on: what follows the name."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
