"""What a server or a cluster must release: processes, other resources, and a folder."""

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
"""A file with this name in the folder marks network namespaces to remove."""


class Resources:
    """A temporary folder, the processes that write to it, and callbacks to run before its removal.

    A finalizer may call `release`, so this object has no reference to its server. A killed process removes nothing: the
    next process on this machine that creates such a folder removes the old ones.
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
        """The pids by name, including processes that have ended."""
        return {name: process.pid for name, process in list(self.processes.items())}

    def release(self) -> None:
        """Kills the processes and removes the folder. Does nothing in a forked child, whose exit must not end them."""
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
    """A descriptor that holds the folder's lock. The kernel releases it when this process ends."""
    # Under another name until it is locked: a sweep would otherwise remove the folder as abandoned.
    path = folder / f"{_LOCK}.new"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    path.rename(folder / _LOCK)
    return descriptor


@functools.cache
def _sweep_once() -> None:
    sweep(Path(tempfile.gettempdir()))


def sweep(base: Path) -> None:
    """Removes folders in `base` that killed processes of this user left behind."""
    for folder in base.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, EtcdError), _abandoned(folder):
            _end_of_life(folder)


def _end_of_life(folder: Path) -> None:
    if (folder / NAMESPACES).exists():
        remove(folder.name)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _abandoned(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. Raises OSError if its owner runs, or it is not a folder of this user."""
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} is not ours")
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
