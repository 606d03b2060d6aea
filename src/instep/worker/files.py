"""Opens files of a checkpoint folder in which another user, or a writer to etcd, may have planted something.

Names come from documents that others can write, so a name never leads out of its directory, and what is opened is a
regular file of a user that is trusted.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

MAX_NAME: Final = 4096
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class Owners:
    """The users whose files in `folder` may be loaded: the one of this process, those in `also`, and the one under
    which the file system shows what this process creates there (NFS with all_squash, many FUSE mounts)."""

    def __init__(self, folder: Path, also: Iterable[int] = ()) -> None:
        self._folder = folder
        self._uids = {os.geteuid(), *also}
        self._shown: int | None = None

    def __repr__(self) -> str:
        return f"Owners({', '.join(map(str, sorted(self._uids)))})"

    def check(self, path: Path, uid: int) -> None:
        """OSError, with the cure, when `path` belongs to a user that is not trusted."""
        if uid in self._uids:
            return
        if self._shown is None:
            self._shown = _shown_uid(self._folder)
        if uid != self._shown:
            text = (
                f"it belongs to user id {uid} and this process runs as {os.geteuid()}, so it is not loaded: give "
                f"trusted_uids=[{uid}] to the Checkpointer if that user is one of yours"
            )
            raise OSError(errno.EPERM, text, str(path))


def open_file(folder: Path, name: str, owners: Owners) -> io.FileIO:
    """Opens a regular file below `folder` to read it; `name` is relative, with / between its parts.

    OSError for a name that leads elsewhere, for a symbolic link on the way, for devices, pipes and sockets (never waits
    for one), and for a file or directory of a user that is not trusted.
    """
    parts = _parts_of(folder, name)
    directory = _open_directory(folder, None, folder, owners)
    try:
        path = folder
        for part in parts[:-1]:
            path = path / part
            inner = _open_directory(part, directory, path, owners)
            os.close(directory)
            directory = inner
        descriptor = _open_regular(parts[-1], directory, path / parts[-1], owners)
    finally:
        os.close(directory)
    return io.FileIO(descriptor, "rb")


def read_file(folder: Path, name: str, owners: Owners, limit: int) -> bytes:
    """The whole file, opened as by `open_file`. OSError (EFBIG) when it holds more than `limit` bytes."""
    with open_file(folder, name, owners) as file, io.BufferedReader(file) as stream:
        text = stream.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
    if text is None or len(text) > limit:
        raise OSError(errno.EFBIG, "it is larger than any file of this kind that Instep writes", str(folder / name))
    return text


def _parts_of(folder: Path, name: str) -> list[str]:
    parts = name.split("/")
    if "\0" in name or len(name) > MAX_NAME or any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, "a file of a checkpoint lies in its directory: this name leads elsewhere", name)
    return parts


def _open_directory(name: str | Path, within: int | None, path: Path, owners: Owners) -> int:
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=within)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and _is_link(name, within)):
            raise _connection(path) from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        owners.check(path, os.fstat(descriptor).st_uid)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _open_regular(name: str, within: int, path: Path, owners: Owners) -> int:
    try:
        found = os.stat(name, dir_fd=within, follow_symlinks=False)
        _check_regular(found, path)  # before it is opened: opening a device can have effects
        descriptor = os.open(name, _FILE, dir_fd=within)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _connection(path) from None
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        found = os.fstat(descriptor)
        _check_regular(found, path)
        owners.check(path, found.st_uid)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(found: os.stat_result, path: Path) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise _connection(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file, and nothing else of a checkpoint is read", str(path))


def _is_link(name: str | Path, within: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=within, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _connection(path: Path) -> OSError:
    return OSError(errno.ELOOP, "it is a symbolic link, and none is followed inside of a checkpoint folder", str(path))


def _shown_uid(folder: Path) -> int:
    """The owner that the file system gives to a new file of this process; -1 where none can be made."""
    import tempfile  # only where the owner is another one

    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return -1
