"""A directory names the checkpoint that it holds, which is enough to list it again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from instep.protocol.records import Manifest
from instep.wire.messages import CommitCheckpoint
from instep.worker.adoption import Found, find_checkpoints
from instep.worker.manifest import MANIFEST, Owners
from instep.worker.slot import Saver, Slot, make_directory

SAVER = Saver(
    run="gpt-a",
    namespace="/training",
    rank=1,
    world_size=2,
    view=3,
    token=7,
    candidate="c",
    config={"lr": 0.5, "note": "x"},
    plan=4,
    lineage=("10-6",),
)


class Sink:
    """Takes every commit."""

    def __init__(self) -> None:
        self.said: Manifest | None = None

    def commit(self, message: CommitCheckpoint) -> bool:
        self.said = message.manifest
        return True

    def give_up(self, checkpoint_id: str) -> None: ...


def save(folder: Path, step: int = 20, *, commit: bool = True) -> tuple[Path, Manifest | None]:
    sink = Sink()
    slot = Slot(step, make_directory(folder, step, SAVER.token), "plain", SAVER, sink)
    (slot.path / "model.pt").write_bytes(b"12345")
    slot.seal()
    if commit:
        slot.commit()
    return slot.path, sink.said


def found_in(folder: Path, run: str = "gpt-a", namespace: str = "/training") -> list[Found]:
    return list(find_checkpoints(folder, run, namespace, Owners(folder)))


def test_the_record_made_from_the_directory_is_the_one_that_was_committed(tmp_path: Path) -> None:
    path, said = save(tmp_path)
    (found,) = found_in(tmp_path)
    assert found.is_committed
    assert found.record is not None
    assert said is not None
    assert replace(found.record, committed_at=said.committed_at, duration_s=said.duration_s) == said
    moved = path.rename(tmp_path / "elsewhere") and (tmp_path / "elsewhere").rename(path)
    assert moved == path


def test_a_directory_that_was_never_committed_is_found_unmarked(tmp_path: Path) -> None:
    save(tmp_path, commit=False)
    assert [item.is_committed for item in found_in(tmp_path)] == [False]


def test_a_moved_folder_is_found_at_its_new_place(tmp_path: Path) -> None:
    save(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    (found,) = found_in(tmp_path / "after")
    assert found.record is not None
    assert found.record.path == str(tmp_path / "after" / "step-20-7")


def test_directories_of_other_runs_and_namespaces_are_ignored(tmp_path: Path) -> None:
    save(tmp_path)
    assert found_in(tmp_path, run="gpt-b") == []
    assert found_in(tmp_path, namespace="/other") == []


@pytest.mark.parametrize("damage", ["truncated", "renamed", "old", "no list", "no record", "link"])
def test_an_unusable_directory_is_reported_and_not_adopted(tmp_path: Path, damage: str) -> None:
    path, _ = save(tmp_path)
    if damage == "truncated":
        (path / "model.pt").write_bytes(b"1")
    elif damage == "renamed":
        path.rename(path.with_name("step-99-7"))
    elif damage == "old":
        document = json.loads((path / MANIFEST).read_text())
        del document["checkpoint"]
        (path / MANIFEST).write_text(json.dumps(document))
    elif damage == "no record":
        document = json.loads((path / MANIFEST).read_text())
        document["checkpoint"]["view"] = "x"
        (path / MANIFEST).write_text(json.dumps(document))
    elif damage == "no list":
        (path / MANIFEST).write_text("rubbish")
    else:
        (path / "model.pt").rename(tmp_path / "model.pt")
        (path / "model.pt").symlink_to(tmp_path / "model.pt")
    (found,) = found_in(tmp_path)
    assert found.record is None
    assert found.problem


def test_links_and_directories_with_other_names_are_ignored(tmp_path: Path) -> None:
    path, _ = save(tmp_path / "real")
    (tmp_path / path.name).symlink_to(path)
    (tmp_path / "notes").mkdir()
    assert found_in(tmp_path) == []
