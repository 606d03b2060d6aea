"""Foreign files in a checkpoint's folder are refused at once, and nothing is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from instep.worker.manifest import Owners, open_file, read_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "step-1-2"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(b"12345")
    (tmp_path / "secret").write_bytes(b"not yours")
    return folder


def test_a_regular_file_of_ours_is_read(folder: Path) -> None:
    assert read_file(folder, "deep/file", Owners(folder), 5) == b"12345"


@pytest.mark.parametrize(
    "name", ["../secret", "deep/../../secret", "/etc/passwd", "", ".", "deep//file", "a\0b", "x" * 9999]
)
def test_a_name_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(OSError, match="points elsewhere"):
        open_file(folder, name, Owners(folder))


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda path: path.symlink_to("/dev/zero"), "symbolic link"),
        (lambda path: path.symlink_to("deep/file"), "symbolic link"),
        (os.mkfifo, "not a regular file"),
        (Path.mkdir, "not a regular file"),
    ],
)
def test_a_file_that_is_not_regular_is_refused_without_blocking(
    folder: Path, plant: Callable[[Path], object], told: str
) -> None:
    plant(folder / "odd")
    with pytest.raises(OSError, match=told):
        open_file(folder, "odd", Owners(folder))


def test_a_link_in_the_path_is_refused(folder: Path) -> None:
    (folder / "way").symlink_to("deep")
    with pytest.raises(OSError, match="symbolic link"):
        open_file(folder, "way/file", Owners(folder))
    folder.with_name("step-3-4").symlink_to(folder)
    with pytest.raises(OSError, match="symbolic link"):
        open_file(folder.with_name("step-3-4"), "deep/file", Owners(folder))


def test_a_file_larger_than_any_of_its_kind_is_not_read(folder: Path) -> None:
    with (folder / "large").open("wb") as file:
        file.truncate(1 << 40)  # it takes no room
    with pytest.raises(OSError, match="larger than any file of this kind"):
        read_file(folder, "large", Owners(folder), 1 << 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_user_are_refused_unless_that_one_is_trusted(folder: Path) -> None:
    os.chown(folder / "deep" / "file", 12345, -1)
    with pytest.raises(OSError, match=r"trusted_uids=\[12345\]"):
        open_file(folder, "deep/file", Owners(folder))
    open_file(folder, "deep/file", Owners(folder, [12345])).close()
    os.chown(folder, 12345, -1)
    with pytest.raises(OSError, match="belongs to user id 12345"):
        open_file(folder, "deep/file", Owners(folder))
