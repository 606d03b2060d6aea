"""Checkpoints that must not be lost, and those that must not be loaded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from run.harness import TrainingRun, wait_for
from run.saver_team import Team
from run.test_checkpointer import SCRIPT, all_do, leave, log_of, saved_in, the_one
from run.torch_nursery import Nursery

pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path, nursery: Nursery) -> Iterator[Team]:
    team = Team(training, tmp_path / "saved", SCRIPT, nursery)
    yield team
    team.close()


def train_and_save(team: Team, *steps: int, **options: object) -> None:
    """A run of one rank that saves these steps and ends well."""
    ranks = team.join("a")
    all_do(ranks, "build", **options)
    start = the_one(all_do(ranks, "restore"), "next")
    for step in steps:
        all_do(ranks, "train", start=start, steps=step + 1 - start)
        assert the_one(all_do(ranks, "keep", step=step), "saved") is True
        start = step + 1
    leave(team)


def put_manifest(team: Team, **changes: object) -> None:
    """Changes the record of the newest checkpoint, as whoever may write to etcd can."""
    newest = team.training.key("checkpoints/latest")["id"]
    record = {**team.training.key(f"checkpoints/{newest}"), **changes}
    key = f"{team.training.namespace}/gpt-a/checkpoints/{newest}"
    team.training.server.etcdctl("put", key, json.dumps(record))


def test_a_record_in_etcd_leads_to_no_files_outside_of_the_folder(team: Team, tmp_path: Path) -> None:
    train_and_save(team, 0, 1)
    newest = team.folder / saved_in(team)[-1]
    elsewhere = tmp_path / "elsewhere" / newest.name
    shutil.move(newest, elsewhere)
    put_manifest(team, path=str(elsewhere))
    (rank,) = team.join("a")
    rank.ask("build")
    assert rank.ask("restore")["next"] == 1
    leave(team)
    assert f"it was saved in {elsewhere.parent}" in log_of(rank)

    newest.symlink_to(elsewhere)
    (rank,) = team.join("a")
    rank.ask("build")
    assert rank.ask("restore")["next"] == 1
    leave(team)
    assert "it is a symbolic link" in log_of(rank)


def test_a_planted_record_does_not_have_another_checkpoint_deleted(team: Team) -> None:
    """Whose directory it names; the record itself is forgotten in its turn."""
    train_and_save(team, 0, 1, keep=None)
    first, second = saved_in(team)
    record = team.training.key(f"checkpoints/{first.removeprefix('step-')}")
    planted = json.dumps({**record, "id": "0-1", "token": 1, "path": str(team.folder / second)})
    team.training.server.etcdctl("put", f"{team.training.namespace}/gpt-a/checkpoints/0-1", planted)
    train_and_save(team, 2, keep=2)
    assert second in saved_in(team)
    assert "checkpoints/0-1" not in team.training.keys("checkpoints/")


def test_a_forgotten_restore_is_told_of_at_the_first_save_and_takes_nothing_over(team: Team) -> None:
    train_and_save(team, 0, 1, keep=2)
    newest, there = team.training.key("checkpoints/latest"), saved_in(team)
    ranks = team.join("aa")
    all_do(ranks, "build", keep=1)
    all_do(ranks, "train", start=0, steps=1)
    for rank in ranks:
        answer = rank.ask("keep", step=0)
        assert answer["error"] == "CheckpointError"
        assert "restore() was not called" in answer["text"]
        assert "instep forget gpt-a --all" in answer["text"]
    assert (team.training.key("checkpoints/latest"), saved_in(team)) == (newest, there)


def test_a_start_at_the_wrong_step_deletes_nothing_of_more_steps(team: Team) -> None:
    train_and_save(team, 2, 3, keep=2)
    there = saved_in(team)
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", keep=1)
    assert rank.ask("restore")["next"] == 4
    for step in (0, 1):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    leave(team)
    assert set(there) < set(saved_in(team))
    assert "step 0 is saved although this run went on from the checkpoint of step 3" in log_of(rank)


def test_a_registry_that_is_lost_takes_no_checkpoint_with_it(team: Team) -> None:
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", keep=2)
    for step in range(3):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    there = saved_in(team)
    team.training.server.etcdctl("del", "--prefix", f"{team.training.namespace}/gpt-a/checkpoints/")
    for step in range(3, 6):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    leave(team)
    assert set(there) < set(saved_in(team))
    assert "were committed and have no record in etcd any more: their files are kept" in log_of(rank)


def test_the_digest_of_a_list_that_was_planted_does_not_make_its_names_lead_elsewhere(
    team: Team, tmp_path: Path
) -> None:
    train_and_save(team, 0, 1)
    newest = team.folder / saved_in(team)[-1]
    (tmp_path / "secret").write_bytes(b"1")
    file = newest / "instep-manifest.json"
    document = json.loads(file.read_text())
    document["files"]["../../secret"] = {"bytes": 1, "sha256": hashlib.sha256(b"1").hexdigest()}
    file.write_text(json.dumps(document))
    put_manifest(team, digest=hashlib.sha256(file.read_bytes()).hexdigest())
    (rank,) = team.join("a")
    rank.ask("build")
    assert rank.ask("restore")["next"] == 1
    leave(team)
    assert "this name leads elsewhere" in log_of(rank)
    wait_for(lambda: not team.workers, "the end")
