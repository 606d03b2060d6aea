"""Which of some processes made a TCP connection on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TABLE = Path("/proc/net/tcp")


def owner(source_port: int, target_port: int, processes: Mapping[str, int]) -> str | None:
    """The name of the process that connected over IPv4 from one port of this machine to the other.

    `processes` maps names to pids; only those are looked at, and those of other users cannot be. None: it was
    none of them, or it has ended.
    """
    inode = _inode(source_port, target_port)
    if inode is None:
        return None
    return next((name for name, pid in processes.items() if _holds(pid, inode)), None)


def _inode(source_port: int, target_port: int) -> str | None:
    source, target = f":{source_port:04X}", f":{target_port:04X}"
    for line in _TABLE.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(source) and fields[2].endswith(target):
            return fields[9]
    return None


def _holds(pid: int, inode: str) -> bool:
    link = f"socket:[{inode}]"
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False
    return any(_target(pid, descriptor) == link for descriptor in descriptors)


def _target(pid: int, descriptor: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/fd/{descriptor}")
    except OSError:
        return None
