"""The list of shards is a pickle: it is read without running what it brings."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from instep.torch._checkpoint.metadata import METADATA, CheckedPlanner, CheckedReader, files_in, read_metadata
from instep.worker.manifest import Owners


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._mark}",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "step-1-2"


def saved(folder: Path, **state: Any) -> Metadata:
    writer = FileSystemWriter(folder)
    found: Metadata = save({"model": nn.Linear(2, 2).state_dict(), **state}, storage_writer=writer, no_dist=True)
    return found


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_what_torch_writes_is_read_as_it_was(folder: Path) -> None:
    written = saved(folder, optimizer={"lr": 0.5, "betas": (0.9, 0.99), "whole": torch.arange(3)})
    found = read_metadata(folder, Owners(folder))
    assert found.state_dict_metadata == written.state_dict_metadata
    assert files_in(found) == {"__0_0.distcp"}
    state = {
        "model": nn.Linear(2, 2).state_dict(),
        "optimizer": {"lr": 0.0, "betas": (), "whole": torch.zeros(3).long()},
    }
    reader, planner = CheckedReader(folder, found, Owners(folder)), CheckedPlanner(weights_only=True)
    load(state, storage_reader=reader, planner=planner, no_dist=True)
    assert (state["optimizer"]["lr"], state["optimizer"]["betas"]) == (0.5, (0.9, 0.99))
    assert torch.equal(state["optimizer"]["whole"], torch.arange(3))


@pytest.mark.parametrize("wrap", [lambda it: it, lambda it: [it], lambda it: Metadata({}, planner_data=it)])
def test_a_planted_list_of_shards_runs_nothing(folder: Path, tmp_path: Path, wrap: Any) -> None:
    folder.mkdir()
    (folder / METADATA).write_bytes(pickle.dumps(wrap(Planted(tmp_path / "ran"))))
    with pytest.raises(ValueError, match=r"it names posix\.system"):
        read_metadata(folder, Owners(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_value_planted_in_a_shard_runs_nothing(folder: Path, tmp_path: Path) -> None:
    saved(folder, extra=Planted(tmp_path / "ran"))
    found = read_metadata(folder, Owners(folder))
    state = {"model": nn.Linear(2, 2).state_dict(), "extra": 0}
    reader, planner = CheckedReader(folder, found, Owners(folder)), CheckedPlanner(weights_only=True)
    with pytest.raises(CheckpointException, match=r"posix\.system"):
        load(state, storage_reader=reader, planner=planner, no_dist=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("document", [b"", b"rubbish", pickle.dumps({}), pickle.dumps(Metadata({"a": 1}))])  # type: ignore[dict-item]
def test_what_is_no_list_of_shards_is_refused(folder: Path, document: bytes) -> None:
    folder.mkdir()
    (folder / METADATA).write_bytes(document)
    with pytest.raises(ValueError, match="is not a list of shards"):
        read_metadata(folder, Owners(folder))


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/passwd"])
def test_shards_lie_in_the_directory(folder: Path, name: str) -> None:
    folder.mkdir()
    planted = Metadata({}, storage_data={MetadataIndex("a"): _StorageInfo(name, 0, 1)})
    (folder / METADATA).write_bytes(pickle.dumps(planted))
    with pytest.raises(ValueError, match="is not a list of shards"):
        read_metadata(folder, Owners(folder))
