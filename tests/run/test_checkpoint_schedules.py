"""Checkpoints under rare schedules: a step saved twice, a newcomer after a fallback, an etcd that goes away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from run.harness import TrainingRun, wait_for
from run.saver_team import Team
from run.test_checkpoints import save_some


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path) -> Iterator[Team]:
    team = Team(training, tmp_path / "saved")
    yield team
    team.close()


def test_a_step_is_saved_again_if_its_first_checkpoint_was_deleted(team: Team) -> None:
    """As after a restore. Before the fix, its commit was mistaken for the first one's and never made."""
    (worker,) = team.join("a")
    team.leader(worker)
    first = worker.ask("save", step=5)
    worker.ask("save", step=6)
    assert worker.ask("forget", ids=[first["slot"]])["ids"] == [first["slot"]]
    shutil.rmtree(first["path"])
    again = worker.ask("save", step=5)
    assert (again["path"], again["state"]) == (first["path"], "committed")
    assert worker.ask("list")["ids"][0] == again["slot"]
    assert team.training.key("checkpoints/latest")["id"] == again["slot"]


def test_a_rank_that_joins_after_a_fall_back_does_not_count_the_damaged_checkpoint(team: Team) -> None:
    """The run resumed from step 10 because the checkpoint of step 20 is damaged. Before the fix, a rank that joined
    later and became the leader assumed that everything up to step 20 was saved, and so did `Checkpointer.save`,
    which saved nothing."""
    good, damaged = save_some(team, "ab", 10, 20)
    ranks = zero, one = team.join("aa")
    for worker in ranks:
        worker.tell("resume", refuse=[damaged])
    assert {worker.answer()["id"] for worker in ranks} == {good}
    assert not zero.ask("has", step=15)["has"]
    one.kill()
    newcomer = team.start(1, 2, "a")
    assert "error" not in newcomer.answer()
    saved = wait_for(lambda: newcomer.ask("hear", wait_s=0.1)["saved"], "the news of what was saved last")
    assert saved["id"] == damaged
    assert not team.training.key("state/view")["fresh"]
    assert not zero.ask("has", step=15)["has"]
    assert not newcomer.ask("has", step=15)["has"]


def test_the_agreed_checkpoint_is_read_even_if_etcd_has_gone_away(
    fragile_training: TrainingRun, tmp_path: Path
) -> None:
    """It cannot be forgotten, because it was pinned before the ranks voted. A checkpoint without an agreement has no
    pin."""
    team = Team(fragile_training, tmp_path / "saved")
    try:
        older, newest = save_some(team, "a", 10, 20)
        (worker,) = team.join("a")
        hold = tmp_path / "hold"
        hold.touch()
        worker.tell("resume_and_read", hold=str(hold))
        wait_for(hold.with_suffix(".seen").exists, "an agreement")
        server = team.training.server
        server.pause()
        try:
            hold.unlink()
            assert worker.answer().get("id") == newest
        finally:
            server.resume()
        assert older != newest
    finally:
        team.close()
