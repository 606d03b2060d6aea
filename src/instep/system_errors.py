"""Errors of the operating system as messages with a fix: full disks, quotas, limits."""

from __future__ import annotations

import errno
import resource
from typing import Final

OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Errors of `accept` while a limit is reached: a call later succeeds, but an immediate retry fails again."""


def explained(error: OSError, elsewhere: str = "") -> str:
    """A message such as `No space left on device: free space or inodes there, or set ... to another folder`.

    `elsewhere` is the alternative if the place itself is not usable, such as "set X to another folder".
    """
    reason = error.strerror or str(error)
    path = f" ({error.filename})" if error.filename is not None else ""
    cure = _cure_of(error, elsewhere)
    return f"{reason}{path}: {cure}" if cure else f"{reason}{path}"


def _cure_of(error: OSError, elsewhere: str) -> str:
    another = f", or {elsewhere}" if elsewhere else ""
    match error.errno:
        case errno.ENOSPC:
            return f"free space or inodes on that file system{another}"
        case errno.EDQUOT:
            return f"free some of the quota on that file system{another}"
        case errno.EMFILE:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return f"raise the limit of open files of a process (ulimit -n), which is {soft}"
        case errno.ENFILE:
            return "raise the machine's limit of open files (sysctl fs.file-max), or end processes that hold many"
        case errno.EAGAIN:
            return "raise the limit of processes (ulimit -u, or pids.max of the container)"
        case errno.ENOMEM | errno.ENOBUFS:
            return "free memory, or raise the memory limit of the container"
        case _:
            return elsewhere
