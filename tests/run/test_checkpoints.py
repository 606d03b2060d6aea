"""Checkpoints: exactly one rank saves, a committed checkpoint is listed once, and no other is ever listed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from run.harness import TrainingRun, wait_for
from run.saver_team import Team


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path) -> Iterator[Team]:
    team = Team(training, tmp_path / "saved" / "deep")
    yield team
    team.close()


@pytest.fixture
def fragile_team(fragile_training: TrainingRun, tmp_path: Path) -> Iterator[Team]:
    """On its own etcd server."""
    team = Team(fragile_training, tmp_path / "saved")
    yield team
    team.close()


def test_one_rank_saves_and_all_are_notified(team: Team) -> None:
    team.training.put("lr", "0.5")
    workers = team.join("aab")
    for worker in workers:
        worker.ask("step", step=7)
    answers = [worker.ask("save", step=7, text="seven") for worker in workers]
    (saved,) = (answer for answer in answers if answer["slot"] is not None)
    assert saved["state"] == "committed"
    assert (Path(saved["path"]) / "state").read_text() == "seven"
    for worker in workers:
        wait_for(lambda w=worker: (w.ask("hear")["saved"] or {}).get("id") == saved["slot"], "the news")
        listed = worker.ask("list")
        assert listed["ids"] == [saved["slot"]]
        assert listed["newest"]["config"] == {"lr": 0.5}
        assert listed["newest"]["step"] == 7
        assert listed["newest"]["path"] == saved["path"]
        assert worker.ask("has", step=7)["has"]
        assert not worker.ask("has", step=8)["has"]
    assert team.training.key("checkpoints/latest")["id"] == team.training.key("state/saved")["id"] == saved["slot"]


# -- going on from one ------------------------------------------------------------------------------------------------


def save_some(team: Team, nodes: str, *steps: int) -> list[str]:
    """Checkpoints of these steps by a run that then ends; their ids."""
    workers = team.join(nodes)
    leader, _ = team.leader(*workers)
    ids = [leader.ask("save", step=step)["slot"] for step in steps]
    assert all(ids)
    for worker in workers:
        worker.tell("close")
    for worker in workers:
        worker.answer()
        worker.close()
    return ids


def test_all_ranks_of_a_new_start_resume_from_the_newest_checkpoint(team: Team) -> None:
    old = save_some(team, "ab", 10, 20)
    workers = team.join("aab")  # another world size: its meaning is up to the script
    assert team.training.key("state/view")["start"]["checkpoint"] == old[-1]
    for worker in workers:
        worker.tell("resume")
    answers = [worker.answer() for worker in workers]
    assert [answer["id"] for answer in answers] == [old[-1]] * 3
    assert [answer["seen"] for answer in answers] == [[old[-1]]] * 3
    assert team.training.keys("reports/verified/") == []


def test_a_run_without_checkpoints_resumes_from_nothing(team: Team) -> None:
    workers = team.join("ab")
    for worker in workers:
        worker.tell("resume")
    assert [worker.answer()["id"] for worker in workers] == [None, None]


def test_a_checkpoint_that_one_rank_finds_damaged_is_skipped_by_all(team: Team) -> None:
    first, second, third = save_some(team, "ab", 10, 20, 30)
    (team.folder / "step-30-{}".format(third.split("-")[1]) / "state").unlink()
    zero, one, two = team.join("aab")
    zero.tell("resume")
    one.tell("resume", refuse=[second])
    two.tell("resume")
    for worker in (zero, one, two):
        answer = worker.answer()
        assert answer["id"] == first
        assert set(answer["refused"]) == {second, third}
        assert "No such file" in answer["refused"][third]
        assert answer["refused"][second].startswith("rank 1 on ")
        assert answer["refused"][second].endswith(": its state is damaged")


def test_without_a_good_checkpoint_all_ranks_get_the_reasons(team: Team) -> None:
    ids = save_some(team, "a", 10, 20)
    workers = team.join("ab")
    for worker in workers:
        worker.tell("resume", refuse=ids)
    for worker in workers:
        answer = worker.answer()
        assert answer["id"] is None
        assert set(answer["refused"]) == set(ids)


def test_a_vote_that_etcd_has_lost_unnoticed_is_reported_again(team: Team) -> None:
    (saved,) = save_some(team, "a", 10)
    first, second = team.join("ab")
    first.tell("resume", timeout_s=30)
    (key,) = wait_for(lambda: team.training.keys("reports/verified/"), "the vote of the first node")
    team.training.server.etcdctl("del", key)
    second.tell("resume", timeout_s=30)
    assert [worker.answer()["id"] for worker in (first, second)] == [saved, saved]


def test_a_rank_that_does_not_resume_is_named(team: Team) -> None:
    save_some(team, "a", 10)
    zero, one, two = team.join("aab")
    zero.tell("resume", timeout_s=3)
    one.tell("resume", timeout_s=3)
    for worker in (zero, one):
        answer = worker.answer()
        assert answer["error"] == "BarrierTimeout"
        assert answer["missing"] == ["rank 2"]
        assert "rank 2 has not answered" in answer["text"]
    two.tell("resume")
    assert two.answer()["id"] is not None  # the votes of the others still count
