"""What a server or a cluster must give back: processes, whatever else was opened, and a folder."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from instep.errors import EtcdError
from instep.etcd_server.process import ServerProcess
from instep.testing._namespaces import remove

_PREFIX = "instep-etcd-"
_LOCK = "in-use"

NAMESPACES = "namespaces"
"""A file of this name in the folder tells that there are network namespaces to be removed."""


class Resources:
    """A temporary folder, the processes that write to it, and callbacks to be made before it goes.

    `release` may be called by a finalizer: it knows nothing of the server that it cleans up after. A process
    that is killed removes nothing; its folders go when the next process on this machine makes its first one.
    """

    def __init__(self) -> None:
        _sweep_once()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self.processes: dict[str, ServerProcess] = {}
        self.before_release: list[Callable[[], None]] = []
        self.released = False
        self._owner = os.getpid()
        self._lock = _locked(self.folder)

    def pids(self) -> dict[str, int]:
        """The processes by name, those that have ended among them."""
        return {name: process.pid for name, process in list(self.processes.items())}

    def release(self) -> None:
        """Kill the processes and remove the folder; nothing in a forked child, whose exit must not end them."""
        if os.getpid() != self._owner:
            return
        self.released = True
        for process in self.processes.values():
            process.send_kill()
        for process in self.processes.values():
            process.kill()
        for callback in reversed(self.before_release):
            with contextlib.suppress(EtcdError):
                callback()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock: the kernel lets go of it when this process ends."""
    # Under another name until it is locked: a sweep that saw it before would take the folder for abandoned.
    path = folder / f"{_LOCK}.new"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    path.rename(folder / _LOCK)
    return descriptor


@functools.cache
def _sweep_once() -> None:
    sweep(Path(tempfile.gettempdir()))


def sweep(base: Path) -> None:
    """Remove the folders in `base` that processes of this user left there when they were killed."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, EtcdError), _abandoned(folder):
            _end_of_life(folder)


def _end_of_life(folder: Path) -> None:
    if (folder / NAMESPACES).exists():
        remove(folder.name)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _abandoned(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; OSError when its owner lives, or it is not this user's or none of ours."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not ours")
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
