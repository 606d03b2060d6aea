"""The list of a checkpoint's files: any damage to one of them is described in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from instep.worker.manifest import MANIFEST, FileSum, sum_file, verify_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "step-1-2"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_bytes(b"12345")
    (folder / "deep" / "b").write_bytes(b"")
    return folder


def test_all_files_are_listed_with_their_sizes_and_found_whole(folder: Path) -> None:
    sums = write_manifest(folder)
    assert (sums.files, sums.bytes) == (2, 5)
    assert set(json.loads((folder / MANIFEST).read_text())["files"]) == {"a", "deep/b"}
    assert verify_manifest(folder, sums.digest) is None
    assert write_manifest(folder) == sums  # the list is no file of the checkpoint


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "a").write_bytes(b"1234"), "a was truncated: it has 4 bytes and had 5"),
        (lambda folder: (folder / "a").write_bytes(b"123456"), "a was changed: it has 6 bytes and had 5"),
        (lambda folder: (folder / "a").write_bytes(b"12346"), "a was changed: it is not what was saved"),
        (lambda folder: (folder / "deep" / "b").unlink(), "b is missing"),
        (lambda folder: (folder / "a").unlink() or (folder / "a").mkdir(), "a "),
        (lambda folder: (folder / MANIFEST).unlink(), "instep-manifest.json cannot be read: No such file"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), "was changed after the checkpoint was committed"),
        (lambda folder: folder.rename(folder.with_name("elsewhere")), "is missing, or cannot be seen from this host"),
    ],
)
def test_each_damage_is_described(folder: Path, damage: Callable[[Path], object], told: str) -> None:
    sums = write_manifest(folder)
    damage(folder)
    assert told in (verify_manifest(folder, sums.digest) or "")


def test_a_file_that_was_added_later_is_ignored(folder: Path) -> None:
    sums = write_manifest(folder)
    (folder / "notes").write_text("the good one")
    assert verify_manifest(folder, sums.digest) is None


def test_several_ranks_check_all_files_together(folder: Path) -> None:
    sums = write_manifest(folder)
    (folder / "deep" / "b").write_text("damaged")
    found = [verify_manifest(folder, sums.digest, only=lambda number, _, r=rank: number % 2 == r) for rank in (0, 1)]
    assert [problem is None for problem in found] == [True, False]


def test_known_checksums_are_reused_unless_the_size_differs(folder: Path) -> None:
    """The writer of a file has read it; a folder with the same name on another host is detected."""
    plain = write_manifest(folder)
    known = {"a": sum_file(folder / "a", sync=False)}
    assert write_manifest(folder, known) == plain
    with pytest.raises(OSError, match="another size here than where it was written"):
        write_manifest(folder, {"a": FileSum(6, "0" * 64)})


@pytest.mark.parametrize("kind", ["pipe", "link to a directory", "link to nothing"])
def test_a_path_that_is_no_file_is_refused(folder: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(folder / "odd")
    else:
        (folder / "odd").symlink_to(folder / "deep" if kind == "link to a directory" else "nowhere")
    with pytest.raises(OSError, match="files and directories only"):
        write_manifest(folder)


def test_names_that_are_not_unicode_are_listed_too(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff")).write_text("x")
    assert verify_manifest(folder, write_manifest(folder).digest) is None
