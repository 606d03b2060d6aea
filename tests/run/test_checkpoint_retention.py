"""What a Checkpointer keeps on the disk: retention, a lost etcd, a late leader, a second Checkpointer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.harness.fork_server import ForkServer

from instep.etcd import Client
from instep.worker.manifest import MANIFEST
from run.harness import TrainingRun, wait_for
from run.saver_team import Team
from run.test_checkpointer import SCRIPT, all_do, leave, order, saved_in

pytest.importorskip("torch")
from instep.torch._checkpoint.parts import write_label
from instep.torch._checkpoint.save_election import SILENCE_S

pytestmark = pytest.mark.torch


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path, fork_server: ForkServer) -> Iterator[Team]:
    team = Team(training, tmp_path / "saved", SCRIPT, fork_server)
    yield team
    team.close()


async def fatten(training: TrainingRun) -> None:
    """As if each manifest named very many or very long values."""
    prefix = f"{training.namespace}/gpt-a/checkpoints/"
    async with Client(training.server.endpoints) as client:
        for item in (await client.range(prefix)).kvs:
            if not item.key.endswith("latest") and len(item.value) < 100_000:
                await client.put(item.key, json.dumps({**json.loads(item.value), "more": "x" * 900_000}))


def test_of_many_checkpoints_every_one_to_keep_is_kept(team: Team) -> None:
    ranks = team.join("a")
    all_do(ranks, "build", keep=None)
    for step in range(4):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
        asyncio.run(fatten(team.training))
    assert {int(name.split("-")[1]) for name in saved_in(team)} == set(range(4))


def test_a_restored_checkpoint_is_kept_longer_than_those_left_behind(team: Team) -> None:
    """A restart falls back to it if the next one is damaged."""
    ranks = team.join("a")
    all_do(ranks, "build", keep=3)
    for step in range(3):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    first = ranks[0].ask("list")["ids"][-1]
    ranks[0].tell("train_until_back", start=3)
    order(team.training, "restore", name=first)
    assert ranks[0].answer()["next"] == 1
    all_do(ranks, "train", start=1, steps=3)
    all_do(ranks, "keep", step=3)
    assert first in ranks[0].ask("list")["ids"]


def test_a_whole_directory_of_a_lost_etcd_is_kept_although_its_token_is_reused(team: Team) -> None:
    (rank,) = ranks = team.join("a")
    token = rank.ask("step", step=0)["token"]
    lost = team.folder / f"step-0-{token}"
    lost.mkdir(parents=True)
    write_label(lost, run="gpt-a", layout="plain", names=("model",))
    (lost / MANIFEST).write_text("{}")
    all_do(ranks, "build", keep=1)
    for step in range(3):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    assert saved_in(team) == [lost.name, f"step-2-{token}"]


def test_a_leader_that_reaches_the_save_seconds_after_the_others_saves_for_all(team: Team) -> None:
    """It evaluates first. Before the fix, ranks that gave up had no checkpoint."""
    ranks = team.join("ab")
    all_do(ranks, "build")
    all_do(ranks, "train", start=0, steps=1)
    leader, (other,) = team.leader(*ranks)
    other.tell("keep", step=0)
    time.sleep(1.5 * SILENCE_S)  # the evaluation
    assert leader.ask("keep", step=0)["saved"] is True
    assert other.answer()["saved"] is True


def test_a_directory_whose_forgetting_was_unconfirmed_is_deleted_after_the_next_save(team: Team) -> None:
    """Its directory is older than the process that asked to forget it."""
    ranks = team.join("a")
    all_do(ranks, "build", keep=None)
    for step in range(3):
        all_do(ranks, "train", start=step, steps=1)
        all_do(ranks, "keep", step=step)
    leave(team)
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build", keep=1)
    all_do(ranks, "restore")
    all_do(ranks, "train", start=3, steps=1)
    wait_for(lambda: not team.training.keys("reports/readers/"), "the restored checkpoint to have no reader")
    all_do(ranks, "lose_answers")
    all_do(ranks, "keep", step=3)
    assert len(saved_in(team)) == 4
    assert len(rank.ask("list")["ids"]) == 1
    all_do(ranks, "train", start=4, steps=1)
    all_do(ranks, "keep", step=4)
    assert len(saved_in(team)) == 1


def test_a_second_checkpointer_is_refused(team: Team) -> None:
    (rank,) = ranks = team.join("a")
    all_do(ranks, "build")
    all_do(ranks, "train", start=0, steps=1)
    all_do(ranks, "keep", step=0)
    all_do(ranks, "build", without=["scheduler"])
    assert "another Checkpointer" in rank.ask("keep", step=0)["text"]
