"""The processes of a node: its agents and their supervisors, found by the folder that they serve."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def agents_below(folder: Path) -> list[int]:
    """All that serve below `folder`, a supervisor before its agent; also those that nobody can connect to."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended since
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"instep.agent" in words and any(word.startswith(bytes(folder) + b"/") for word in words):
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return sorted(found, key=lambda pid: (found[pid] in found, pid))


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """To all of them, in that order; those that have ended are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
