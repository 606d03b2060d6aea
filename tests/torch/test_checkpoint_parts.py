"""Parts of a checkpoint: what is refused before anything is saved, and what a file and a snapshot keep of them."""

from __future__ import annotations

import resource
from collections import OrderedDict, namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from instep.errors import CheckpointError
from instep.torch._checkpoint.parts import checked_parts, on_cpu, read_label, read_part, unwrap, write_label, write_part
from instep.worker.manifest import Owners

Pair = namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({}, "needs parts to save"),
        ({"model": object()}, "model is a object: it needs state_dict"),
        ({"a/b": torch.nn.Linear(1, 1)}, "'a/b' cannot name a part"),
        ({"x" * 65: torch.nn.Linear(1, 1)}, "cannot name a part"),
    ],
)
def test_what_cannot_be_a_part_is_refused(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        checked_parts(parts, sharded=False)


def test_an_optimizer_whose_state_is_spread_over_the_ranks_is_refused() -> None:
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    optimizer.consolidate_state_dict = lambda to: None  # as ZeroRedundancyOptimizer has it
    with pytest.raises(CheckpointError, match=r"run\.checkpoint\(step\)"):
        checked_parts({"optimizer": optimizer}, sharded=False)


def test_a_model_is_taken_out_of_its_wrappers() -> None:
    model = torch.nn.Linear(1, 1)
    compiled = torch.compile(model, backend="eager")
    assert unwrap(compiled) is model
    assert unwrap(model) is model
    assert checked_parts({"model": compiled}, sharded=False)["model"] is model


def test_a_part_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    model = torch.nn.BatchNorm1d(3)
    state = model.state_dict()
    write_part(tmp_path, "model", state)
    back = read_part(tmp_path, "model", Owners(tmp_path), weights_only=True)
    assert all(torch.equal(back[name], value) for name, value in state.items())
    assert back._metadata == state._metadata


def test_a_part_is_never_written_over(tmp_path: Path) -> None:
    write_part(tmp_path, "model", {})
    with pytest.raises(FileExistsError):
        write_part(tmp_path, "model", {})


def test_what_the_disk_refuses_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """Whatever torch makes of it."""
    (tmp_path / "model.pt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="File exists"):
        write_part(tmp_path, "model", {"weight": torch.zeros(1000)})
    for size in (10, 10_000_000):
        path = tmp_path / str(size)
        path.mkdir()
        with limited(1000 if size > 10 else 10), pytest.raises(OSError, match="File too large"):
            write_part(path, "model", {"weight": torch.zeros(size)})


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut off"])
def test_a_file_that_torch_cannot_read_is_told_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.pt cannot be read"):
        read_part(tmp_path, "model", Owners(tmp_path), weights_only=True)


def test_a_missing_part_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    write_part(tmp_path, "model", {})
    with pytest.raises(CheckpointError, match="no part 'ema', it has model"):
        read_part(tmp_path, "ema", Owners(tmp_path), weights_only=True)


def test_a_snapshot_has_all_that_the_state_has_and_none_of_its_memory() -> None:
    shared = torch.arange(4.0)
    state = OrderedDict(a=shared, b=shared.view(4), c=shared[1:], d=[(shared, 1), Pair("x", {2: shared})], e=None)
    state._metadata = {"": {"version": 2}}
    twin = on_cpu(state)
    shared.zero_()
    assert twin["a"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert twin["a"] is twin["b"] is twin["d"][0][0] is twin["d"][1].second[2]  # tied weights stay tied
    assert twin["c"].tolist() == [1.0, 2.0, 3.0]
    assert isinstance(twin["d"][1], Pair)
    assert twin._metadata == state._metadata
    assert list(twin) == list(state)


def test_a_label_says_whose_directory_it_is(tmp_path: Path) -> None:
    assert read_label(tmp_path, Owners(tmp_path)) is None
    write_label(tmp_path, run="gpt-a", layout="plain", names=("model",))
    assert (read_label(tmp_path, Owners(tmp_path)) or {})["run"] == "gpt-a"
    (tmp_path / "instep-parts.json").write_text("[]")
    assert read_label(tmp_path, Owners(tmp_path)) is None


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
