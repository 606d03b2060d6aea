"""How a node gets its name, and when a stored name is valid."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from instep.agent.name import forget_node_name, keep_node_name, node_name
from instep.protocol.records import Member
from instep.runtime import RuntimeFolder
from unit.parts import registered


@pytest.fixture
def folder(runtime_dir: Path) -> RuntimeFolder:
    return RuntimeFolder(runtime_dir / "run")


def test_hosts_of_one_name_draw_64_bits_so_that_even_10_000_of_them_differ(folder: RuntimeFolder) -> None:
    drawn = [node_name(folder, "") for _ in range(10_000)]
    assert len({name.name for name in drawn}) == len({name.claim for name in drawn}) == 10_000


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("ip-10-0-12-34.us-west-2.compute.internal", "ip-10-0-12-34"),
        ("gpu-17.us-central1-a.c.my-project.internal", "gpu-17"),
        ("a-long-name-of-a-job-worker-17", "ame-of-a-job-worker-17"[-20:]),
        ("größe-7", "gr--e-7"),
        ("...", "node"),
        ("", "node"),
        ("-" * 64, "node"),
    ],
)
def test_a_name_shows_the_host_and_fits_a_registration(
    folder: RuntimeFolder, monkeypatch: pytest.MonkeyPatch, host: str, shown: str
) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename=host))
    name = node_name(folder, "").name
    assert name.rpartition("-")[0] == shown.strip("-")
    Member.model_validate({**registered(0, 1).member.model_dump(), "node": name})


def test_an_agent_started_after_a_crash_has_the_name_of_the_one_before(folder: RuntimeFolder) -> None:
    first = node_name(folder, "")
    keep_node_name(folder, first)
    assert node_name(folder, "") == first
    forget_node_name(folder)
    assert node_name(folder, "").name != first.name


def test_a_name_in_a_copied_folder_is_ignored(folder: RuntimeFolder, runtime_dir: Path) -> None:
    """As on machines made from one image, on which the run was tried before."""
    first = node_name(folder, "")
    keep_node_name(folder, first)
    shutil.copytree(folder.path, runtime_dir / "copy")
    assert node_name(RuntimeFolder(runtime_dir / "copy"), "").name != first.name


def test_a_name_from_before_a_reboot_is_ignored(folder: RuntimeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copied disk has the same inodes, but no two machines have started with one boot id."""
    first = node_name(folder, "")
    keep_node_name(folder, first)
    place = folder.place()
    monkeypatch.setattr(RuntimeFolder, "place", lambda self: place.replace(place[:8], "0" * 8))
    assert node_name(folder, "").name != first.name
    monkeypatch.setattr(RuntimeFolder, "place", lambda self: "")
    keep_node_name(folder, first)
    assert node_name(folder, "").name != first.name, "a place that is not known must not match itself"


@pytest.mark.parametrize("text", ["", "plain-ab12", "[]", "{}", "7", json.dumps({"name": "a", "place": "x"}), "\xff"])
def test_a_damaged_or_older_file_is_ignored(folder: RuntimeFolder, text: str) -> None:
    folder.node.write_bytes(text.encode("latin-1"))
    name = node_name(folder, "")
    assert len(name.name) > 16
    assert not name.fixed


def test_the_name_that_workers_know_wins_over_the_folder(folder: RuntimeFolder) -> None:
    known = node_name(folder, "node-7")
    assert (known.name, known.fixed) == ("node-7", True)
    keep_node_name(folder, known)
    assert node_name(folder, "node-7") == known
    other = node_name(folder, "node-8")
    assert other.name == "node-8"
    assert other.claim != known.claim
