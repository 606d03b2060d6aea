"""A rank that waits for news about a checkpoint and has no agent."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.harness.processes import parent_of

from run.harness import TrainingRun, wait_for
from run.saver_team import Team, Worker


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path) -> Iterator[Team]:
    team = Team(training, tmp_path / "saved")
    yield team
    team.close()


def test_a_rank_without_an_agent_logs_it_once_and_continues_with_the_next(team: Team) -> None:
    (worker,) = team.join("a")
    agent = team.training.agent_pid()
    for pid in (parent_of(agent), agent):
        os.kill(pid, signal.SIGKILL)
    claim = wait_for(
        team.training.folder_of().claim, "the agent's place"
    )  # no process can start one while the test holds the claim
    said = wait_for(lambda: worker.ask("hear", wait_s=0.5) and complaints(worker), "the rank to say that it has none")
    worker.ask("hear", wait_s=1.0)
    assert complaints(worker) == said == 1
    os.close(claim)
    wait_for(lambda: worker.ask("hear", wait_s=0.1)["leads"], "another agent")


def complaints(worker: Worker) -> int:
    return sum("the node's agent did not answer" in line for line in worker.log)
