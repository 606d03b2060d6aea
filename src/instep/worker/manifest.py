"""The list of a checkpoint's files with their sums: written when it is whole, compared before it is loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from instep.worker.files import Owners, open_file, read_file

log = logging.getLogger("instep")

MANIFEST: Final = "instep-manifest.json"
COMMITTED: Final = "instep-committed"
"""An empty file beside the list: etcd has answered that the checkpoint is committed."""
MAX_MANIFEST_BYTES: Final = 256 * 1024 * 1024
"""Of the list of files: a million of them fit in."""
_UNFINISHED: Final = f"{MANIFEST}.tmp"
_FORMAT: Final = 1
_CANNOT_BE_SYNCED: Final = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)
"""Some network file systems do not sync directories, and the parent of a folder need not be readable."""

Only: TypeAlias = Callable[[int, str], bool]
"""Given a file's number in the list and its name in it, whether to look at it."""


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
    """What a list says: the files by name, and `about` the checkpoint, as `write_manifest` was given them."""

    files: Mapping[str, FileSum]
    about: Mapping[str, Any]
    digest: str

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.files.values())


def write_manifest(
    folder: Path, known: Mapping[str, FileSum] | None = None, about: Mapping[str, Any] | None = None
) -> Sums:
    """Lists every file below `folder`, after which all of it is on the disk as far as fsync can promise that.

    `about` says which checkpoint it is: all that its record in etcd says, so the record can be made from it.

    Reads every file once, in pieces, but for those whose sums are `known` by their names in the folder: who has written
    them has summed and synced them. Links to files are followed; links to directories, sockets and the like are
    refused. Raises OSError. Nobody may write in the folder meanwhile: that would not be noticed here.
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
    """Marks the checkpoint as committed on the disk; where that fails, only etcd knows of it."""
    try:
        _write_synced(folder / COMMITTED, b"")
        _sync_directory(folder)
    except OSError as error:
        log.warning("%s cannot be marked as committed: %s; only etcd knows that it is", folder, _reason(error))


def read_manifest(folder: Path, owners: Owners, digest: str | None = None) -> Listed:
    """What `write_manifest` wrote there. Raises OSError, and ValueError for a list that is none, or has another sum
    than `digest`."""
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
    """None when the files are as they were when the list was written, else what is wrong, in one sentence.

    With `only` just the chosen files are looked at. Files that are not in the list are nobody's concern. Raises nothing
    for what a disk can do. `owners` says whose files may be loaded.
    """
    found = verified(folder, digest, owners or Owners(folder.parent), only=only)
    return found if isinstance(found, str) else None


def verified(
    folder: Path, digest: str | None, owners: Owners, *, only: Only | None = None, sums: bool = True
) -> Listed | str:
    """What the list says, else what is wrong with it or with the files, as `verify_manifest`. `digest`: None where no
    record names one. Without `sums` the files are not read: what counts is that they are there in their sizes."""
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
    """Reads it in pieces; with `sync` it is on the disk afterwards. Raises OSError."""
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
    """`folder` itself comes last, so that what is in it is synced before its own entries are."""
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
