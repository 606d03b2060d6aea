"""A process whose rank another process takes over is evicted wherever it waits, and the others continue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from run.harness import TrainingRun, wait_for
from run.saver_team import Team
from run.test_commands_live import order, paused_at

TAKES_OVER = {"TAKE_OVER": "1"}


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path) -> Iterator[Team]:
    team = Team(training, tmp_path / "saved")
    yield team
    team.close()


@pytest.mark.parametrize(
    ("where", "arguments"),
    [("resume", {}), ("hear", {"wait_s": 60.0})],
    ids=["for a checkpoint to resume from", "for a checkpoint that another rank saves"],
)
def test_a_rank_that_is_taken_over_while_it_waits_is_evicted(team: Team, where: str, arguments: dict[str, Any]) -> None:
    leader, _ = team.leader(*team.join("ab"))
    assert leader.ask("save", step=0)["slot"] is not None
    for worker in team.workers:
        worker.ask("close")
    first, second = team.join("ab")
    first.tell(where, **arguments)
    newcomer = team.start(0, 2, "c", TAKES_OVER)
    assert newcomer.answer()["view"] == 3
    answer = first.answer()
    assert (answer["error"], "rank 0 was taken over" in answer["text"]) == ("Evicted", True)
    assert [worker.ask("step", step=0)["config"] for worker in (newcomer, second)] == [{"lr": 0.1}] * 2


def test_a_rank_that_is_taken_over_while_the_run_is_paused_is_evicted(training: TrainingRun) -> None:
    first, second = training.start_all(2, nodes="ab")
    order(training, "pause")
    at = paused_at(training)
    newcomer = training.start(0, 2, "--take-over", f"--start={at}", node="c")
    newcomer.wait_said("joined")
    assert first.wait_said("error")["kind"] == "Evicted"
    order(training, "resume")
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in (newcomer, second)}) == 1
    training.stop(newcomer, second)


def test_of_two_processes_that_wait_to_join_as_one_rank_the_first_is_refused(team: Team) -> None:
    """The later process is admitted; none waits until a timeout."""
    first = team.start(0, 2, "a")
    wait_for(lambda: team.training.keys("reports/members/0/"), "the first registration")
    newcomer = team.start(0, 2, "c", TAKES_OVER)
    wait_for(lambda: len(team.training.keys("reports/members/0/")) == 2, "both registrations")
    other = team.start(1, 2, "b")
    assert [worker.answer().get("view") for worker in (newcomer, other)] == [1, 1]
    assert first.answer()["error"] == "JoinRefused"
