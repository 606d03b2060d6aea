"""Checkpoints that must not be lost, and checkpoints that must not be loaded."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.harness.fork_server import ForkServer
from typer.testing import CliRunner

from instep.cli._app import app
from instep.protocol.records import Epoch
from instep.recipes.token import epoch_of
from instep.worker.manifest import MANIFEST
from run.harness import TrainingRun, wait_for
from run.saver_team import Team
from run.test_checkpointer import SCRIPT, all_do, leave, log_of, saved_in, the_one
from run.test_commands_live import order, wait_declined

pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path, fork_server: ForkServer) -> Iterator[Team]:
    team = Team(training, tmp_path / "saved", SCRIPT, fork_server)
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
    """Changes the record of the newest checkpoint, as anyone who may write to etcd can."""
    newest = team.training.key("checkpoints/latest")["id"]
    record = {**team.training.key(f"checkpoints/{newest}"), **changes}
    key = f"{team.training.namespace}/gpt-a/checkpoints/{newest}"
    team.training.server.etcdctl("put", key, json.dumps(record))


def test_a_record_in_etcd_cannot_name_files_outside_the_folder(team: Team, tmp_path: Path) -> None:
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


def test_a_planted_record_does_not_delete_another_checkpoint(team: Team) -> None:
    """The record names another checkpoint's directory; the record itself is forgotten in its turn."""
    train_and_save(team, 0, 1, keep=None)
    first, second = saved_in(team)
    record = team.training.key(f"checkpoints/{first.removeprefix('step-')}")
    planted = json.dumps({**record, "id": "0-1", "token": 1, "path": str(team.folder / second)})
    team.training.server.etcdctl("put", f"{team.training.namespace}/gpt-a/checkpoints/0-1", planted)
    train_and_save(team, 2, keep=2)
    assert second in saved_in(team)
    assert "checkpoints/0-1" not in team.training.keys("checkpoints/")


def test_a_forgotten_restore_is_reported_at_the_first_save_and_adopts_nothing(team: Team) -> None:
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


def test_a_start_at_the_wrong_step_deletes_no_later_checkpoint(team: Team) -> None:
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
    assert "step 0 is saved although this run resumed from the checkpoint of step 3" in log_of(rank)


def test_a_lost_registry_is_rebuilt_from_the_disk_and_no_checkpoint_is_deleted(team: Team) -> None:
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", keep=2)
    for step in range(3):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    there = saved_in(team)
    assert len(there) == 2
    team.training.server.etcdctl("del", "--prefix", f"{team.training.namespace}/gpt-a/checkpoints/")
    all_do(ranks, "train", start=3, steps=1)
    all_do(ranks, "keep", step=3)
    listed = rank.ask("list")
    assert {f"step-{item}" for item in listed["ids"]} == set(saved_in(team)) > {there[-1]}
    assert listed["newest"]["lineage"][0] == there[-1].removeprefix("step-")
    assert team.training.key("checkpoints/latest")["step"] == 3
    leave(team)
    assert "were committed, but etcd no longer has their records: their files are kept" in log_of(rank)


def test_a_training_run_lists_its_checkpoints_again_once_tokens_have_another_epoch(team: Team) -> None:
    """As after etcd's history has gone back; without another save, and although the first attempt is refused."""
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", keep=None)
    all_do(ranks, "refuse_adoption")
    for step in range(2):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    etcdctl, root = team.training.server.etcdctl, f"{team.training.namespace}/gpt-a"
    epoch = Epoch(number=1, why="a test").encode()
    for arguments in (("del", "--prefix", f"{root}/checkpoints/"), ("put", f"{root}/state/epoch", epoch)):
        etcdctl(*arguments)
    for key in team.training.keys("election/"):
        etcdctl("del", key)
    steps = itertools.count(2)
    step = wait_for(lambda: trained_once_listed(team, next(steps)), "the checkpoints in the registry")
    assert {f"step-{item}" for item in rank.ask("list")["ids"]} == set(saved_in(team))
    assert team.training.key("checkpoints/latest")["step"] == 1
    all_do(ranks, "keep", step=step)
    assert epoch_of(team.training.key("checkpoints/latest")["token"]) == 1


def trained_once_listed(team: Team, step: int) -> int:
    """Trains this step; 0 until the registry has the second checkpoint."""
    all_do(team.workers, "train", start=step, steps=1)
    return step if team.training.keys("checkpoints/1-") else 0


def test_records_that_could_not_be_written_again_after_one_save_are_written_after_the_next(team: Team) -> None:
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", keep=None)
    all_do(ranks, "refuse_adoption")
    for step in range(4):
        if step == 2:
            team.training.server.etcdctl("del", "--prefix", f"{team.training.namespace}/gpt-a/checkpoints/")
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    assert {f"step-{item}" for item in rank.ask("list")["ids"]} == set(saved_in(team))


def test_a_damaged_list_of_files_does_not_keep_other_checkpoints_from_being_registered_again(team: Team) -> None:
    ranks = team.join("a")
    all_do(ranks, "build", keep=None)
    for step in range(3):
        if step == 2:
            listing = team.folder / saved_in(team)[0] / MANIFEST
            listed = json.loads(listing.read_bytes())
            listed["checkpoint"]["world_size"] = "three"
            listing.write_text(json.dumps(listed))
            team.training.server.etcdctl("del", "--prefix", f"{team.training.namespace}/gpt-a/checkpoints/")
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    (rank,) = ranks
    _, *others = saved_in(team)
    assert {f"step-{item}" for item in rank.ask("list")["ids"]} == set(others)


def test_going_back_to_a_checkpoint_of_another_model_is_declined_and_training_continues(team: Team) -> None:
    train_and_save(team, 0, width=8)
    (name,) = (name.removeprefix("step-") for name in saved_in(team))
    ranks = team.join("ab")
    all_do(ranks, "build")
    assert "has the shape" in ranks[0].ask("restore")["text"]
    for rank in ranks:
        rank.tell("train_until_back", start=0)
    declined = wait_declined(team.training, order(team.training, "restore", name=name))
    assert "cannot be loaded by this script: its model does not fit this script's: 0.weight has the shape" in declined
    assert all(rank.process.poll() is None for rank in ranks)


def test_a_start_beside_checkpoints_that_etcd_lost_is_refused_until_adoption(team: Team) -> None:
    train_and_save(team, 2, 3)
    there = saved_in(team)
    team.training.server.etcdctl("del", "--prefix", f"{team.training.namespace}/gpt-a/")
    ranks = team.join("aa")
    all_do(ranks, "build", keep=1)
    for rank in ranks:
        answer = rank.ask("restore")
        assert answer["error"] == "CheckpointError"
        assert f"instep adopt gpt-a {team.folder} --namespace {team.training.namespace}" in answer["text"]
    leave(team)
    assert saved_in(team) == there

    adopted = CliRunner().invoke(app, ["adopt", "gpt-a", str(team.folder), *place_of(team)])
    assert adopted.exit_code == 0, adopted.output
    assert f"a start resumes from {there[-1].removeprefix('step-')}" in adopted.output
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", keep=1)
    assert rank.ask("restore")["next"] == 4
    all_do(ranks, "train", start=4, steps=1)
    assert the_one(all_do(ranks, "keep", step=4), "saved") is True
    assert team.training.key("checkpoints/latest")["step"] == 4


def test_a_start_is_refused_if_etcd_knows_only_an_older_checkpoint(team: Team) -> None:
    """As after a restore from a backup."""
    train_and_save(team, 2, 3)
    old, new = (name.removeprefix("step-") for name in saved_in(team))
    etcdctl, root = team.training.server.etcdctl, f"{team.training.namespace}/gpt-a"
    pointer = {**team.training.key("checkpoints/latest"), "id": old, "step": 2}
    etcdctl("del", f"{root}/checkpoints/{new}")
    for key in ("checkpoints/latest", "state/saved"):
        etcdctl("put", f"{root}/{key}", json.dumps(pointer))
    (rank,) = team.join("a")
    rank.ask("build")
    answer = rank.ask("restore")
    assert answer["error"] == "CheckpointError"
    assert f"etcd knows of none after {old}" in answer["text"]


def test_a_run_whose_folder_was_deleted_can_start_once_its_checkpoints_are_forgotten(team: Team) -> None:
    train_and_save(team, 0)
    shutil.rmtree(team.folder)
    (rank,) = team.join("a")
    rank.ask("build")
    assert "instep forget gpt-a --all" in rank.ask("restore")["text"]
    leave(team)
    forgotten = CliRunner().invoke(app, ["forget", "gpt-a", "--all", *place_of(team)])
    assert forgotten.exit_code == 0, forgotten.output
    assert "a start begins at step 0" in forgotten.output
    train_and_save(team, 0)


def test_operators_see_why_a_save_failed_until_a_later_one_succeeds(team: Team) -> None:
    ranks = team.join("a")
    all_do(ranks, "build", ballast=100_000)
    all_do(ranks, "train", start=0, steps=1)
    all_do(ranks, "limit_files", size=100_000)
    assert the_one(all_do(ranks, "keep", step=0), "saved") is False
    wait_for(lambda: team.training.key("history/failed-saves"), "the record of it")
    status = CliRunner().invoke(app, ["status", "gpt-a", *place_of(team)]).output
    assert "not saved" in status
    assert "step 0, rank 0 on" in status
    told = json.loads(CliRunner().invoke(app, ["status", "gpt-a", "--json", *place_of(team)]).output)
    assert "File too large" in told["failed_save"]["reason"]
    all_do(ranks, "limit_files", size=-1)
    all_do(ranks, "train", start=1, steps=1)
    assert the_one(all_do(ranks, "keep", step=1), "saved") is True
    assert "not saved" not in CliRunner().invoke(app, ["status", "gpt-a", *place_of(team)]).output
    told = json.loads(CliRunner().invoke(app, ["history", "gpt-a", "--json", *place_of(team)]).output)
    (failed,) = told["failed_saves"]
    assert (failed["step"], failed["rank"]) == (0, 0)
    assert "File too large" in failed["reason"]


def place_of(team: Team) -> list[str]:
    """Options for the command line."""
    return ["--etcd", team.training.server.endpoint, "--namespace", team.training.namespace]


def test_a_planted_file_list_with_a_valid_digest_cannot_name_files_elsewhere(team: Team, tmp_path: Path) -> None:
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
    assert "this name points elsewhere" in log_of(rank)
