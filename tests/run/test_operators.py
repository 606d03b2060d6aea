"""What operators do to a run of real workers, from the command line: each command to its receipt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cli.command import Ended, environment, instep
from run.harness import Trainer, TrainingRun, wait_for

SECONDS = r"\d+\.\d\d s"


class Operator:
    """The command line as this run's operator has it."""

    def __init__(self, training: TrainingRun) -> None:
        self._environment = environment(training.environment())

    def does(self, *arguments: str) -> Ended:
        return instep(*arguments, env=self._environment)

    def json(self, *arguments: str) -> Any:
        ended = self.does(*arguments, "--json")
        assert ended.out, ended.err
        return ended.json

    def receipt(self, *arguments: str) -> str:
        """Of a command that must succeed."""
        ended = self.does(*arguments, "--author", "ann", "--wait")
        assert ended.code == 0, ended.err
        return ended.out.removesuffix("\n")


@pytest.fixture
def operator(training: TrainingRun) -> Operator:
    return Operator(training)


def said_at(trainers: list[Trainer], event: str, field: str = "step") -> int:
    (step,) = {int(trainer.wait_said(event)[field]) for trainer in trainers}
    return step


def test_a_run_is_paused_and_resumed_with_receipts(training: TrainingRun, operator: Operator) -> None:
    training.start_all(4, nodes="ab")
    paused = operator.receipt("pause", "gpt-a", "--why", "look at it")
    found = re.fullmatch(
        rf"pause: requested, armed on 4/4 ranks, paused before step (\d+) on 4/4, {SECONDS}( \(attempt \d\))?", paused
    )
    assert found, paused
    step = int(found[1])

    now = operator.json("status", "gpt-a")
    assert now["state"] == "paused"
    assert now["paused"] == {"step": step, "why": "paused by ann: look at it"}
    assert f"before step {step}: paused by ann: look at it" in operator.does("status", "gpt-a").out
    assert operator.json("runs")["runs"][0]["state"] == "paused"

    again = operator.does("pause", "gpt-a")
    assert (again.code, again.out) == (5, "")
    assert f"the run is paused already, before step {step} (paused by ann: look at it); 'instep resume" in again.err
    refused = operator.does("checkpoint", "gpt-a")
    assert (refused.code, "resume it first" in refused.err) == (5, True), refused.err

    resumed = operator.receipt("resume", "gpt-a")
    assert re.fullmatch(
        rf"resume: requested, armed on 4/4 ranks, resumed at step {step} on 4/4, {SECONDS}( \(attempt \d\))?", resumed
    )
    none = operator.does("resume", "gpt-a")
    assert (none.code, "the run is not paused" in none.err) == (5, True), none.err
    assert operator.json("status", "gpt-a")["paused"] is None
    entries = operator.json("history", "gpt-a")["entries"]
    assert [(entry["kind"], entry["outcome"], entry["step"]) for entry in entries] == [
        ("resume", "applied", step),
        ("pause", "applied", step),
    ]
    training.stop()


def test_a_stop_waits_for_its_checkpoint(training: TrainingRun, operator: Operator, tmp_path: Path) -> None:
    trainers = training.start_all(4, f"--save-to={tmp_path}", nodes="ab")
    document = operator.json("stop", "gpt-a", "--wait", "--why", "enough")
    receipt = document["receipt"]
    assert (document["outcome"], document["error"]) == ("applied", None)
    saved, end = said_at(trainers, "asked to save"), said_at(trainers, "stopped")
    assert (receipt["step"], receipt["checkpoint"]["step"], end) == (saved + 1, saved, saved + 1)
    assert (receipt["armed"], receipt["applied"], receipt["ranks"]) == (4, 4, 4)
    sentence = (
        rf"stop: requested, armed on 4/4 ranks, all ranks stop before step {end}, checkpoint {saved}-\d+ saved by "
        rf"rank \d \(\d+ bytes, \S+ s\), {SECONDS}( \(attempt \d\))?"
    )
    assert re.fullmatch(sentence, receipt["sentence"]), receipt["sentence"]
    assert [trainer.finish() for trainer in trainers] == [0, 0, 0, 0]

    (listed,) = operator.json("checkpoints", "gpt-a")["checkpoints"]
    assert listed == receipt["checkpoint"]
    assert (Path(listed["path"]) / "state").read_text() == f"step {saved}"
    assert (listed["latest"], listed["world_size"], listed["files"]) == (True, 4, 1)
    assert listed["id"] == f"{saved}-{listed['token']}"
    page = operator.does("checkpoints", "gpt-a").out
    assert re.search(rf"{listed['id']} .* {saved} .*rank {listed['saved_by']} on .*latest", page), page

    now = operator.json("status", "gpt-a")
    assert (now["state"], now["stopping"]["step"], now["checkpoint"]["id"]) == ("ended", end, listed["id"])
    late = operator.does("pause", "gpt-a")
    assert (late.code, late.out) == (6, "")
    assert "is not running: all its ranks have ended cleanly; start it first" in late.err


def test_a_stop_without_a_save_is_one(training: TrainingRun, operator: Operator) -> None:
    trainers = training.start_all(2)
    sentence = operator.receipt("stop", "gpt-a", "--no-save")
    assert sentence.startswith(
        f"stop without a save: requested, armed on 2/2 ranks, all ranks stop before step {said_at(trainers, 'stopped')}, "
    )
    assert not trainers[0].said("asked to save")
    assert [trainer.finish() for trainer in trainers] == [0, 0]


def test_a_notice_for_a_node_stops_all_ranks_with_a_save(
    training: TrainingRun, operator: Operator, tmp_path: Path
) -> None:
    trainers = training.start_all(2, f"--save-to={tmp_path}", nodes="ab")
    wrong = operator.does("stop", "gpt-a", "--node", "nowhere")
    assert wrong.code == 5
    assert "no node of the run has the name or host 'nowhere'; there are " in wrong.err
    both = operator.does("stop", "gpt-a", "--node", training.member_host())
    assert (both.code, "2 nodes are on host" in both.err) == (5, True), both.err
    node = sorted(training.key("state/view")["nodes"])[0]
    sentence = operator.receipt("stop", "gpt-a", "--node", node)
    assert sentence.startswith(f"stop for node {node}: requested, armed on 2/2 ranks, all ranks stop before step ")
    assert [trainer.finish() for trainer in trainers] == [0, 0]


def test_a_checkpoint_is_asked_for_and_waited_for(training: TrainingRun, operator: Operator, tmp_path: Path) -> None:
    trainers = training.start_all(2, f"--save-to={tmp_path}")
    sentence = operator.receipt("checkpoint", "gpt-a")
    step = said_at(trainers, "asked to save")
    assert re.match(
        rf"checkpoint: requested, armed on 2/2 ranks, asked for in step {step} on 2/2, checkpoint {step}-\d+ saved by",
        sentence,
    ), sentence
    assert "saved  step" in operator.does("status", "gpt-a").out
    training.stop()


def test_a_loop_that_saves_nothing_is_told_of(training: TrainingRun, operator: Operator) -> None:
    """Long before the time-out: nobody has begun to write when all ranks are far past the step."""
    training.start_all(2)
    ended = operator.does("checkpoint", "gpt-a", "--wait", "--timeout", "60")
    assert ended.code == 12
    assert "saved nothing: does the loop call ckpt.save(step) when run.checkpoint_requested is set?" in ended.out
    training.stop()


def test_an_action_runs_and_is_listed(training: TrainingRun, operator: Operator) -> None:
    trainers = training.start_all(4, "--action=evaluate", nodes="ab")
    wait_for(lambda: operator.does("act", "gpt-a").out == "evaluate\n", "declared on all ranks")
    sentence = operator.receipt("act", "gpt-a", "evaluate")
    step = said_at(trainers, "evaluate", "after") + 1
    assert sentence.startswith(f"act evaluate: requested, armed on 4/4 ranks, evaluate ran before step {step} on 4/4, ")
    assert operator.json("act", "gpt-a")["actions"] == [{"name": "evaluate", "ranks": "0-3", "everywhere": True}]
    unknown = operator.does("act", "gpt-a", "evalute")
    assert unknown.code == 5
    assert "the training script declares no action 'evalute'; did you mean evaluate?" in unknown.err
    assert training.keys("commands/") == []
    training.stop()


def test_an_action_of_some_ranks_only_is_refused_and_named(training: TrainingRun, operator: Operator) -> None:
    for trainer in (training.start(0, 2, "--action=evaluate"), training.start(1, 2)):
        trainer.wait_said("joined")
    wait_for(lambda: operator.does("act", "gpt-a").out == "evaluate  rank 0 only\n", "declared on one rank")
    wait_for(lambda: training.key("reports/metrics/1").get("actions") == [], "rank 1 declares nothing")
    refused = operator.does("act", "gpt-a", "evaluate")
    assert refused.code == 5
    assert "1 rank did not declare action 'evaluate' (1): all ranks must" in refused.err
    training.stop()


def test_a_run_is_taken_back_to_a_checkpoint(training: TrainingRun, operator: Operator, tmp_path: Path) -> None:
    trainers = training.start_all(2, f"--save-to={tmp_path}", "--restores")
    saved = operator.json("checkpoint", "gpt-a", "--wait")["receipt"]["checkpoint"]
    unknown = operator.does("restore", "gpt-a", "7-7")
    assert unknown.code == 5
    assert f"there is no checkpoint '7-7'; there are {saved['id']} (instep checkpoints)" in unknown.err
    sentence = operator.receipt("restore", "gpt-a", "latest")
    at = said_at(trainers, "restored", "at")
    assert sentence.startswith(
        f"restore {saved['id']}: requested, armed on 2/2 ranks, all ranks went back before step {at} and go on with step "
        f"{saved['step'] + 1} on 2/2, "
    )
    entry = operator.json("history", "gpt-a")["entries"][0]
    assert (entry["kind"], entry["name"], entry["step"]) == ("restore", saved["id"], at)
    training.stop()


def test_a_script_that_cannot_go_back_is_not_asked_to(
    training: TrainingRun, operator: Operator, tmp_path: Path
) -> None:
    training.start_all(2, f"--save-to={tmp_path}")
    saved = operator.json("checkpoint", "gpt-a", "--wait")["receipt"]["checkpoint"]
    wait_for(lambda: training.key("reports/metrics/0").get("restores") is False, "what rank 0 offers")
    refused = operator.does("restore", "gpt-a", saved["id"])
    assert refused.code == 5
    assert "no Checkpointer and no run.on_restore function" in refused.err
    training.stop()


def test_what_a_rank_refuses_is_declined_with_exit_code_5(training: TrainingRun, operator: Operator) -> None:
    """A script that has not passed a boundary yet has not said what it declares: its ranks are asked."""
    trainers = training.start_all(2, "--step-s=0.3")
    wait_for(lambda: all(t.said("config") for t in trainers), "training")
    training.server.etcdctl("del", "--prefix", f"{training.namespace}/gpt-a/reports/metrics/")
    ended = operator.does("act", "gpt-a", "evaluate", "--wait", "--json")
    if "the training script declares no action" not in ended.err:  # unless the ranks have reported again by then
        assert (ended.code, ended.json["outcome"]) == (5, "declined"), ended.err
        assert "declined by the run: evaluate: the script declares no such action" in ended.json["error"]
        entry = operator.json("history", "gpt-a")["entries"][0]
        assert (entry["kind"], entry["name"], entry["outcome"]) == ("action", "evaluate", "declined")
    training.stop()
