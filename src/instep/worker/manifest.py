"""The list of a checkpoint's files with their checksums: written when it is complete, verified before it is loaded."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

log = logging.getLogger("instep")

MAX_NAME: Final = 4096
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


MANIFEST: Final = "instep-manifest.json"
COMMITTED: Final = "instep-committed"
"""An empty file beside the list: etcd has confirmed that the checkpoint is committed."""
MAX_MANIFEST_BYTES: Final = 256 * 1024 * 1024
"""Upper bound for the list of files: enough for a million files."""
_UNFINISHED: Final = f"{MANIFEST}.tmp"
_FORMAT: Final = 1
_CANNOT_BE_SYNCED: Final = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)
"""Some network file systems do not sync directories, and the parent of a folder may not be readable."""
Only: TypeAlias = Callable[[int, str], bool]
"""Called with a file's number in the list and its name: whether to look at it."""


class Owners:
    """The users whose files in `folder` may be loaded: this process's user, those in `also`, and the owner that the
    file system shows for files of this process (NFS with all_squash, many FUSE mounts)."""

    def __init__(self, folder: Path, also: Iterable[int] = ()) -> None:
        self._folder = folder
        self._uids = {os.geteuid(), *also}
        self._shown: int | None = None

    def __repr__(self) -> str:
        return f"Owners({', '.join(map(str, sorted(self._uids)))})"

    def check(self, path: Path, uid: int) -> None:
        """An OSError with the cure, if `path` belongs to a user that is not trusted."""
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
    """Opens a regular file below `folder` for reading; `name` is relative, with / between its parts.

    Raises OSError for a name that leads elsewhere, for a symbolic link on the way, for devices, pipes and sockets
    (without waiting), and for a file or directory of a user that is not trusted.
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
    """The whole file, opened as by `open_file`. Raises OSError (EFBIG) if it has more than `limit` bytes."""
    with open_file(folder, name, owners) as file, io.BufferedReader(file) as stream:
        text = stream.read(limit + 1) if os.fstat(file.fileno()).st_size <= limit else None
    if text is None or len(text) > limit:
        raise OSError(errno.EFBIG, "it is larger than any file of this kind that Instep writes", str(folder / name))
    return text


def _parts_of(folder: Path, name: str) -> list[str]:
    parts = name.split("/")
    if "\0" in name or len(name) > MAX_NAME or any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EINVAL, "a checkpoint's files must be in its directory: this name points elsewhere", name)
    return parts


def _open_directory(name: str | Path, within: int | None, path: Path, owners: Owners) -> int:
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=within)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and _is_link(name, within)):
            raise _link_refused(path) from None
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
        _check_regular(found, path)  # before it is opened, because opening a device can have effects
        descriptor = os.open(name, _FILE, dir_fd=within)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link_refused(path) from None
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
        raise _link_refused(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file, and only regular files are read", str(path))


def _is_link(name: str | Path, within: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=within, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _link_refused(path: Path) -> OSError:
    return OSError(errno.ELOOP, "it is a symbolic link, and links in a checkpoint folder are not followed", str(path))


def _shown_uid(folder: Path) -> int:
    """The owner that the file system shows for a new file of this process; -1 if none can be created."""
    import tempfile  # only if the owner is another user

    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return -1


@dataclass(frozen=True, slots=True)
class Sums:
    """`files` and `bytes` do not count the list itself; `digest` is the sha256 of the list, in hexadecimal."""

    files: int
    bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class FileSum:
    """Of one file; `sha256` in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Listed:
    """The contents of a list: the files by name, and `about`, the checkpoint, as passed to `write_manifest`."""

    files: Mapping[str, FileSum]
    about: Mapping[str, Any]
    digest: str

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.files.values())


def write_manifest(
    folder: Path, known: Mapping[str, FileSum] | None = None, about: Mapping[str, Any] | None = None
) -> Sums:
    """Lists every file below `folder` and syncs all of it to disk, as far as fsync can.

    `about` identifies the checkpoint: it has everything that the record in etcd has, so the record can be rebuilt.

    Reads every file once, in pieces, except for those with `known` checksums (by name in the folder), which their
    writer has computed and synced. Follows links to files. Refuses links to directories, sockets and the like.
    Raises OSError. Limit: does not notice writes to the folder during the call.
    """
    listed: dict[str, FileSum] = {}
    for path in sorted(_files_below(folder), key=lambda file: file.as_posix()):
        name = path.relative_to(folder).as_posix()
        told = (known or {}).get(name)
        if told is not None and path.stat().st_size != told.bytes:
            raise OSError(errno.EIO, "it has another size here than where it was written", str(path))
        listed[name] = told or sum_file(path, sync=True)
    files = {name: {"bytes": item.bytes, "sha256": item.sha256} for name, item in listed.items()}
    document = {"instep_manifest": _FORMAT, "checkpoint": dict(about or {}), "files": files}
    text = json.dumps(document, indent=1).encode()
    _write_synced(folder / _UNFINISHED, text)
    os.replace(folder / _UNFINISHED, folder / MANIFEST)
    for directory in (*_directories_below(folder), folder.parent):
        _sync_directory(directory)
    return Sums(len(listed), sum(item.bytes for item in listed.values()), hashlib.sha256(text).hexdigest())


def mark_committed(folder: Path) -> None:
    """Marks the checkpoint as committed on disk. If that fails, only etcd knows it."""
    try:
        _write_synced(folder / COMMITTED, b"")
        _sync_directory(folder)
    except OSError as error:
        log.warning("%s cannot be marked as committed: %s; only etcd knows that it is", folder, _reason(error))


def read_manifest(folder: Path, owners: Owners, digest: str | None = None) -> Listed:
    """Reads what `write_manifest` wrote. Raises OSError, and ValueError for an unreadable list or one with another
    checksum than `digest`."""
    text = read_file(folder, MANIFEST, owners, MAX_MANIFEST_BYTES)
    if digest is not None and hashlib.sha256(text).hexdigest() != digest:
        raise ValueError(f"{folder / MANIFEST} was changed after the checkpoint was committed")
    try:
        document = json.loads(text)
        files = {name: FileSum(int(item["bytes"]), str(item["sha256"])) for name, item in document["files"].items()}
        about = document.get("checkpoint") or {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{folder / MANIFEST} is of a format that this version does not know") from None
    if not isinstance(about, dict):
        raise ValueError(f"{folder / MANIFEST} is of a format that this version does not know")
    return Listed(files, about, hashlib.sha256(text).hexdigest())


def verify_manifest(folder: Path, digest: str, *, only: Only | None = None, owners: Owners | None = None) -> str | None:
    """None if the files are as they were when the list was written, else what is wrong, in one sentence.

    `only` chooses the files to check. Files that are not in the list are ignored. Does not raise for errors of the
    disk. `owners`: the users whose files may be loaded.
    """
    found = verified(folder, digest, owners or Owners(folder.parent), only=only)
    return found if isinstance(found, str) else None


def verified(
    folder: Path, digest: str | None, owners: Owners, *, only: Only | None = None, sums: bool = True
) -> Listed | str:
    """The contents of the list, else what is wrong with it or with the files, as in `verify_manifest`. `digest`:
    None if no record names one. Without `sums` only the existence and size of the files is checked."""
    if not os.path.lexists(folder):
        return f"{folder} is missing, or cannot be seen from this host"
    try:
        listed = read_manifest(folder, owners, digest)
    except OSError as error:
        return f"{error.filename or folder / MANIFEST} cannot be read: {_reason(error)}"
    except ValueError as error:
        return str(error)
    for number, (name, item) in enumerate(listed.files.items()):
        if (only is None or only(number, name)) and (problem := _problem_of(folder, name, item, owners, sums)):
            return problem
    return listed


def _problem_of(folder: Path, name: str, listed: FileSum, owners: Owners, sums: bool) -> str | None:
    path = folder / name
    try:
        with open_file(folder, name, owners) as file:
            size = os.fstat(file.fileno()).st_size
            if size != listed.bytes:
                change = "truncated" if size < listed.bytes else "changed"
                return f"{path} was {change}: it has {size} bytes and had {listed.bytes} when it was saved"
            if sums and hashlib.file_digest(file, "sha256").hexdigest() != listed.sha256:
                return f"{path} was changed: it is not what was saved, although it has the same size"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{error.filename or path} cannot be read: {_reason(error)}"
    return None


def sum_file(path: Path, *, sync: bool) -> FileSum:
    """Reads it in pieces; with `sync`, syncs it to disk. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return FileSum(os.fstat(file.fileno()).st_size, digest)


def _files_below(folder: Path) -> Iterator[Path]:
    own = (folder / MANIFEST, folder / _UNFINISHED, folder / COMMITTED)
    for directory in _directories_below(folder):
        with os.scandir(directory) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False) or path in own:
                    continue
                if not entry.is_file():
                    raise OSError(errno.EINVAL, "a checkpoint holds files and directories only", entry.path)
                yield path


def _directories_below(folder: Path) -> list[Path]:
    """`folder` itself comes last: its contents are synced before its own entries."""
    return [Path(path) for path, _, _ in os.walk(folder, topdown=False, onerror=_raise)]


def _raise(error: OSError) -> None:
    raise error


def _write_synced(path: Path, text: bytes) -> None:
    with path.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_BE_SYNCED:
            raise


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
