"""The folder where workers meet their agent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from instep.errors import SettingsError
from instep.runtime import MAX_SOCKET_PATH, RuntimeFolder
from instep.settings import Settings

HERE = Settings(endpoints=("http://a:1", "http://b:1"))

HOLDS_THE_CLAIM = """
import sys
from pathlib import Path
from instep.runtime import RuntimeFolder

assert RuntimeFolder(Path(sys.argv[1])).claim() is not None
print("claimed", flush=True)
sys.stdin.read()
"""


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_folder_and_its_parent_are_private(runtime_dir: Path) -> None:
    runtime_dir.rmdir()
    before = os.umask(0)
    try:
        folder = RuntimeFolder.of("gpt", HERE)
    finally:
        os.umask(before)
    assert (mode(folder.path), mode(runtime_dir)) == (0o700, 0o700)
    descriptor = folder.claim()
    assert descriptor is not None
    os.close(descriptor)
    assert mode(folder.path / "agent.lock") & 0o077 == 0


def test_the_same_run_in_the_same_etcd_has_one_folder(runtime_dir: Path) -> None:
    folder = RuntimeFolder.of("gpt", HERE)
    assert folder.path.parent == runtime_dir
    assert RuntimeFolder.of("gpt", Settings(endpoints=HERE.endpoints[::-1], ttl_s=99)).path == folder.path


@pytest.mark.parametrize(
    ("run", "settings"),
    [
        ("gpt-b", HERE),
        ("gpt", Settings(endpoints=("http://a:1",))),
        ("gpt", Settings(endpoints=HERE.endpoints, namespace="/other")),
        ("gpt", Settings(endpoints=HERE.endpoints, user="u", password="p")),
    ],
    ids=["run", "etcd", "namespace", "user"],
)
@pytest.mark.usefixtures("runtime_dir")
def test_another_run_or_another_etcd_has_another_folder(run: str, settings: Settings) -> None:
    assert RuntimeFolder.of(run, settings).path != RuntimeFolder.of("gpt", HERE).path


@pytest.mark.parametrize("bits", [0o750, 0o701, 0o777, 0o720])
def test_a_folder_that_others_can_enter_is_refused(runtime_dir: Path, bits: int) -> None:
    runtime_dir.chmod(bits)
    with pytest.raises(SettingsError, match="nobody else can enter"):
        RuntimeFolder.of("gpt", HERE)


def test_a_link_to_a_folder_is_refused(runtime_dir: Path) -> None:
    (runtime_dir / "real").mkdir(mode=0o700)
    (runtime_dir / "link").symlink_to(runtime_dir / "real")
    with pytest.raises(SettingsError, match="directory of yours"):
        RuntimeFolder(runtime_dir / "link")


def test_a_file_in_its_place_is_refused(runtime_dir: Path) -> None:
    (runtime_dir / "x").write_text("")
    with pytest.raises(SettingsError, match="set INSTEP_RUNTIME_DIR"):
        RuntimeFolder(runtime_dir / "x")


def test_a_folder_that_cannot_be_created_is_refused_with_the_fix(runtime_dir: Path) -> None:
    with pytest.raises(SettingsError, match="set INSTEP_RUNTIME_DIR"):
        RuntimeFolder(runtime_dir / "not" / "there" / "x")


def test_a_path_too_long_for_a_socket_is_refused_with_the_fix(runtime_dir: Path) -> None:
    room = MAX_SOCKET_PATH - len(os.fsencode(runtime_dir)) - len("//agent.sock")
    RuntimeFolder(runtime_dir / ("x" * room))
    with pytest.raises(SettingsError, match="too long for a socket: set INSTEP_RUNTIME_DIR"):
        RuntimeFolder(runtime_dir / ("x" * (room + 1)))


# -- the claim -----------------------------------------------------------------------------------------------------


def test_one_process_at_a_time_has_the_claim(runtime_dir: Path) -> None:
    folder = RuntimeFolder(runtime_dir / "run")
    claim = folder.claim()
    assert claim is not None
    assert folder.claim() is None
    os.close(claim)
    again = folder.claim()
    assert again is not None
    os.close(again)


def test_the_claim_of_a_process_that_is_killed_is_free_at_once(runtime_dir: Path) -> None:
    folder = RuntimeFolder(runtime_dir / "run")
    command = [sys.executable, "-c", HOLDS_THE_CLAIM, str(folder.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        assert folder.claim() is None
        holder.kill()
    claim = folder.claim()
    assert claim is not None
    os.close(claim)


def test_the_claim_passes_to_a_child_that_inherits_it(runtime_dir: Path) -> None:
    folder = RuntimeFolder(runtime_dir / "run")
    claim = folder.claim()
    assert claim is not None
    assert not os.get_inheritable(claim)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=(claim,)) as child:
        os.close(claim)
        assert folder.claim() is None
        child.kill()
    again = folder.claim()
    assert again is not None
    os.close(again)


def test_a_deleted_folder_is_created_again(runtime_dir: Path) -> None:
    folder = RuntimeFolder(runtime_dir / "run")
    shutil.rmtree(folder.path)
    claim = folder.claim()
    assert claim is not None
    os.close(claim)
    assert mode(folder.path) == 0o700
