"""How a process that is not our child ended. Linux reports it until its parent has waited; newer kernels also later."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from pathlib import Path
from typing import Final

_INFO: Final = struct.Struct("Q52xi")
"""struct pidfd_info of linux/pidfd.h: the mask, 12 unused fields, the exit code."""
_GET_INFO: Final = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
_EXIT: Final = 1 << 3


def signal_name(number: int) -> str:
    """`signal 9 (SIGKILL)`; a number without a name is returned as it is."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def how_it_ended(pid: int, pidfd: int) -> str | None:
    """`killed by signal 9 (SIGKILL)` or `ended with exit code 1`. None if it cannot be known, or not yet.

    Limit: a parent that waits for the process takes the answer, unless the kernel is 6.15 or later.
    """
    status = _of_waited_for(pidfd)
    if status is None:
        status = _of_zombie(pid)
    if status is None:
        status = _of_waited_for(pidfd)  # its parent was faster
    return None if status is None else _in_words(status)


def _in_words(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"ended with exit code {code}"
    return f"killed by {signal_name(-code)}"


def _of_zombie(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[-1]) if fields[0] in ("Z", "X") else None
    except (OSError, ValueError, IndexError):
        return None


def _of_waited_for(pidfd: int) -> int | None:
    if pidfd < 0:
        return None
    answer = bytearray(_INFO.pack(_EXIT, 0))
    try:
        fcntl.ioctl(pidfd, _GET_INFO, answer)
    except OSError:
        return None
    told, status = _INFO.unpack(answer)
    return status if told & _EXIT else None
