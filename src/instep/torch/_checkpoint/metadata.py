"""Reads torch.distributed.checkpoint files without running code from them."""

from __future__ import annotations

import errno
import io
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

from instep.worker.manifest import Owners, open_file

METADATA: Final = ".metadata"
MAX_METADATA_BYTES: Final = 4 * 1024**3
"""Limit for the list of shards: ten thousand ranks with a thousand parameters each need about half of it."""

_CLASSES: Final = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "pathlib": ("PosixPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath"),
    "collections": ("OrderedDict",),
}
"""The classes in a list of shards. All of them only hold values."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}, which does not belong in a list of shards")


def read_metadata(folder: Path, owners: Owners) -> Metadata:
    """The list of shards in `folder`. Raises OSError for a file that must not be read, ValueError for a file that is
    not such a list or names files outside `folder`."""
    with open_file(folder, METADATA, owners) as file, io.BufferedReader(file) as stream:
        if os.fstat(file.fileno()).st_size > MAX_METADATA_BYTES:
            raise OSError(errno.EFBIG, "it is larger than any list of shards", str(folder / METADATA))
        try:
            found: object = _Unpickler(stream).load()
        except Exception as error:  # unpickling can raise anything
            raise ValueError(f"{folder / METADATA} is not a list of shards: {error}") from error
    if not (isinstance(found, Metadata) and _is_list_of_shards(found)):
        raise ValueError(f"{folder / METADATA} is not a list of shards")
    return found


def files_in(found: Metadata) -> set[str]:
    """The names of the files with the shards."""
    return {info.relative_path for info in (found.storage_data or {}).values()}


def _is_list_of_shards(found: Metadata) -> bool:
    kinds = (metadata.TensorStorageMetadata, metadata.BytesStorageMetadata)
    try:
        return (
            all(type(name) is str and type(item) in kinds for name, item in found.state_dict_metadata.items())
            and all(type(item) is filesystem._StorageInfo for item in (found.storage_data or {}).values())
            and all(type(name) is str and "/" not in name for name in files_in(found))
        )
    except (AttributeError, TypeError):
        return False


class CheckedReader(FileSystemReader):
    """Reads shards with a list that was already read. Opens only regular files of trusted users in `folder`."""

    def __init__(self, folder: Path, found: Metadata, owners: Owners) -> None:
        super().__init__(folder)
        self.fs = _CheckedFiles(folder, owners)
        self._found = found

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._found


class _CheckedFiles(FileSystem):
    def __init__(self, folder: Path, owners: Owners) -> None:
        super().__init__()
        self._folder = folder
        self._owners = owners

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[io.IOBase]:
        folder, name = os.path.split(path)
        if mode != "rb" or Path(folder) != self._folder:
            raise OSError(errno.EINVAL, "shards are only read from the checkpoint's directory", os.fspath(path))
        with open_file(self._folder, name, self._owners) as file, io.BufferedReader(file) as stream:
            yield stream


class CheckedPlanner(DefaultLoadPlanner):
    """Loads values other than tensors with `weights_only`. torch's own planner uses False, which runs code."""

    def __init__(self, *, weights_only: bool) -> None:
        super().__init__()
        self._weights_only = weights_only

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        loaded = torch.load(value, map_location="cpu", weights_only=self._weights_only)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)
