"""Finds the process that opened a TCP connection on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TABLE = Path("/proc/net/tcp")


def owner(source_port: int, target_port: int, processes: Mapping[str, int]) -> str | None:
    """The name of the process that has the IPv4 connection between two ports of this machine.

    `processes` maps names to pids; only those are checked, and processes of other users cannot be. None if it is none
    of them, or has ended.
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
