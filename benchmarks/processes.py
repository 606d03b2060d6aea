"""What Linux says of a process: its processor time and its memory."""

from __future__ import annotations

import contextlib
from pathlib import Path

MB = 1e6


def cpu_s(pid: int) -> float:
    """Processor time of all threads so far, in seconds, counted in nanoseconds (`stat` counts in 10 ms)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory_mb(pid: int | str = "self") -> dict[str, float]:
    """`Rss`: all pages it has mapped; `Pss`: shared pages counted in part; `Private`: what its end would free."""
    fields: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount, *_ = line.split()
        fields[name.rstrip(":")] = int(amount) * 1024 / MB
    private = fields["Private_Clean"] + fields["Private_Dirty"]
    return {"Rss": fields["Rss"], "Pss": fields["Pss"], "Private": private}


def find_agent(folder: Path) -> tuple[int, int]:
    """The pids of the agent that serves below `folder` and of its guardian. Raises ProcessLookupError without them."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended since
        if b"instep.agent" in words and any(word.startswith(bytes(folder)) for word in words):
            found[int(entry.name)] = parent
    for pid, parent in found.items():
        if parent in found:
            return pid, parent
    raise ProcessLookupError(f"no agent serves below {folder}")


def children(pid: int) -> list[int]:
    """All processes that descend from `pid`, itself not among them; those that have left its tree are not found."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended since
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
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
    """All processes that were started with `mark`, a NAME=value, in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended since, or is another user's
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def listens(port: int) -> bool:
    """Whether a process of this machine listens on this TCP port."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _number, local, _remote, state, *_ = line.split()
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                return True
    return False
