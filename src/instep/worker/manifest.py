"""The list of a checkpoint's files with their sums: written when it is whole, compared before it is loaded."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

MANIFEST: Final = "instep-manifest.json"
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


def write_manifest(folder: Path, known: Mapping[str, FileSum] | None = None) -> Sums:
    """Lists every file below `folder`, after which all of it is on the disk as far as fsync can promise that.

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
    text = json.dumps({"instep_manifest": _FORMAT, "files": files}, indent=1).encode()
    _write_synced(folder / _UNFINISHED, text)
    os.replace(folder / _UNFINISHED, folder / MANIFEST)
    for directory in (*_directories_below(folder), folder.parent):
        _sync_directory(directory)
    return Sums(len(listed), sum(item.bytes for item in listed.values()), hashlib.sha256(text).hexdigest())


def verify_manifest(folder: Path, digest: str, *, only: Only | None = None) -> str | None:
    """None when the files are as they were when the list was written, else what is wrong, in one sentence.

    With `only` just the chosen files are looked at. Files that are not in the list are nobody's concern. Raises nothing
    for what a disk can do.
    """
    if not folder.is_dir():
        return f"{folder} is missing, or cannot be seen from this host"
    try:
        text = (folder / MANIFEST).read_bytes()
    except OSError as error:
        return f"{folder / MANIFEST} cannot be read: {_reason(error)}"
    if hashlib.sha256(text).hexdigest() != digest:
        return f"{folder / MANIFEST} was changed after the checkpoint was committed"
    try:
        listed = dict(json.loads(text)["files"])
    except (ValueError, KeyError, TypeError):
        return f"{folder / MANIFEST} is of a format that this version does not know"
    for number, (name, sums) in enumerate(listed.items()):
        if (only is None or only(number, name)) and (problem := _problem_of(folder / name, sums)):
            return problem
    return None


def _problem_of(path: Path, sums: dict[str, int | str]) -> str | None:
    try:
        size = path.stat().st_size
        if size != sums["bytes"]:
            change = "truncated" if size < int(sums["bytes"]) else "changed"
            return f"{path} was {change}: it has {size} bytes and had {sums['bytes']} when it was saved"
        if sum_file(path, sync=False).sha256 != sums["sha256"]:
            return f"{path} was changed: it is not what was saved, although it has the same size"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {_reason(error)}"
    return None


def sum_file(path: Path, *, sync: bool) -> FileSum:
    """Reads it in pieces; with `sync` it is on the disk afterwards. Raises OSError."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return FileSum(os.fstat(file.fileno()).st_size, digest)


def _files_below(folder: Path) -> Iterator[Path]:
    own = (folder / MANIFEST, folder / _UNFINISHED)
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
