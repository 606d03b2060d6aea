"""Operations on a run of real workers, from the command line: each command to its receipt."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cli.command import Ended, environment, instep
from instep import control
from instep.control import JsonReport, Keys
from instep.errors import CommandRefused, NotRunning
from instep.etcd import Client
from instep.settings import resolve
from run.harness import Trainer, TrainingRun, wait_for

SECONDS = r"\d+\.\d\d s( \(attempt \d\))?"

T = TypeVar("T")


class Operator:
    """This run's operator: at the command line, and as a program that uses `instep.control`, which starts faster."""

    def __init__(self, training: TrainingRun) -> None:
        self._environment = training.environment()
        self._keys = Keys(training.namespace, "gpt-a")

    def types(self, *arguments: str) -> Ended:
        return instep(*arguments, env=environment(self._environment))

    def receipt(self, *arguments: str) -> str:
        """The output of a command that must succeed."""
        ended = self.types(*arguments, "--author", "ann", "--wait")
        assert ended.code == 0, ended.err
        return ended.out.removesuffix("\n")

    def does(self, work: Callable[[Client, Keys], Awaitable[T]]) -> T:
        async def connected() -> T:
            async with control.connect(resolve(environ=self._environment)) as client:
                return await work(client, self._keys)

        return asyncio.run(connected())

    def sees(self, look: Callable[[Client, Keys], Awaitable[JsonReport]]) -> dict[str, Any]:
        return self.does(look).to_json()

    def saves(self) -> dict[str, Any]:
        """The checkpoint that it has requested."""

        async def work(client: Client, keys: Keys) -> JsonReport:
            receipt = await control.wait(client, keys, await control.send(client, keys, "checkpoint"), 60)
            assert receipt.checkpoint is not None, receipt.sentence
            return receipt.checkpoint

        return self.sees(work)

    def is_refused(self, kind: Any, name: str | None = None) -> str:
        with pytest.raises(CommandRefused) as refused:
            self.does(lambda client, keys: control.send(client, keys, kind, name=name))
        return str(refused.value)


@pytest.fixture
def operator(training: TrainingRun) -> Operator:
    return Operator(training)


def said_at(trainers: list[Trainer], event: str, field: str = "step") -> int:
    (step,) = {int(trainer.wait_said(event)[field]) for trainer in trainers}
    return step


def test_a_run_is_paused_and_resumed_with_receipts(training: TrainingRun, operator: Operator) -> None:
    training.start_all(4, nodes="ab")
    paused = operator.receipt("pause", "gpt-a", "--why", "look at it")
    found = re.fullmatch(rf"pause: requested, armed on 4/4 ranks, paused before step (\d+) on 4/4, {SECONDS}", paused)
    assert found, paused
    step = int(found[1])

    now = operator.sees(control.status)
    assert now["state"] == "paused"
    assert now["paused"] == {"step": step, "why": "paused by ann: look at it"}
    assert f"paused  before step {step}: paused by ann: look at it" in operator.types("status", "gpt-a").out

    why = operator.is_refused("pause")
    assert f"the run is already paused, before step {step} (paused by ann: look at it); 'instep resume gpt-a'" in why
    assert "resume it first" in operator.is_refused("checkpoint")

    resumed = operator.receipt("resume", "gpt-a")
    assert re.fullmatch(rf"resume: requested, armed on 4/4 ranks, resumed at step {step} on 4/4, {SECONDS}", resumed)
    assert "the run is not paused" in operator.is_refused("resume")
    assert operator.sees(control.status)["paused"] is None
    entries = operator.sees(control.history)["entries"]
    assert [(entry["kind"], entry["outcome"], entry["step"]) for entry in entries] == [
        ("resume", "applied", step),
        ("pause", "applied", step),
    ]
    training.stop()


def test_a_stop_waits_for_its_checkpoint(training: TrainingRun, operator: Operator, tmp_path: Path) -> None:
    trainers = training.start_all(4, f"--save-to={tmp_path}", nodes="ab")
    document = operator.types("stop", "gpt-a", "--wait", "--json").json
    receipt = document["receipt"]
    assert (document["outcome"], document["error"]) == ("applied", None)
    saved, end = said_at(trainers, "asked to save"), said_at(trainers, "stopped")
    assert (receipt["step"], receipt["checkpoint"]["step"], end) == (saved + 1, saved, saved + 1)
    assert (receipt["armed"], receipt["applied"], receipt["ranks"]) == (4, 4, 4)
    sentence = (
        rf"stop: requested, armed on 4/4 ranks, all ranks stop before step {end}, checkpoint {saved}-\d+ saved by "
        rf"rank \d \(\d+ bytes, \S+ s\), {SECONDS}"
    )
    assert re.fullmatch(sentence, receipt["sentence"]), receipt["sentence"]
    assert [trainer.finish() for trainer in trainers] == [0, 0, 0, 0]

    # The saver leaves, so another rank may come to lead in the same step, and save it too.
    found = operator.sees(control.checkpoints)["checkpoints"]
    assert {item["step"] for item in found} == {saved}
    assert receipt["checkpoint"]["id"] in {item["id"] for item in found}
    listed = found[0]
    assert (Path(listed["path"]) / "state").read_text() == f"step {saved}"
    assert (listed["latest"], listed["world_size"], listed["files"]) == (True, 4, 1)
    assert listed["id"] == f"{saved}-{listed['token']}"
    page = operator.types("checkpoints", "gpt-a").out
    assert re.search(rf"{listed['id']} .* {saved} .*rank {listed['saved_by']} on .*latest", page), page

    now = operator.sees(control.status)
    assert (now["state"], now["stopping"]["step"], now["checkpoint"]["id"]) == ("ended", end, listed["id"])
    with pytest.raises(NotRunning, match="is not running: all its ranks have ended cleanly; start it first"):
        operator.does(lambda client, keys: control.send(client, keys, "pause"))


def test_a_stop_without_a_save_is_one(training: TrainingRun, operator: Operator) -> None:
    trainers = training.start_all(2)
    sentence = operator.receipt("stop", "gpt-a", "--no-save")
    end = said_at(trainers, "stopped")
    said = rf"stop without a save: requested, armed on 2/2 ranks, all ranks stop before step {end}, {SECONDS}"
    assert re.fullmatch(said, sentence), sentence
    assert not trainers[0].said("asked to save")
    assert [trainer.finish() for trainer in trainers] == [0, 0]


def test_a_preemption_notice_for_a_node_stops_all_ranks_with_a_save(
    training: TrainingRun, operator: Operator, tmp_path: Path
) -> None:
    trainers = training.start_all(2, f"--save-to={tmp_path}", nodes="ab")
    both = operator.types("stop", "gpt-a", "--node", training.member_host())
    assert (both.code, "2 nodes are on host" in both.err) == (5, True), both.err
    node = sorted(training.key("state/view")["nodes"])[0]
    sentence = operator.receipt("stop", "gpt-a", "--node", node)
    assert sentence.startswith(f"stop for node {node}: requested, armed on 2/2 ranks, all ranks stop before step ")
    assert [trainer.finish() for trainer in trainers] == [0, 0]
    for left in training.keys("reports/left/"):
        (receipt,) = (key for key in training.keys("reports/receipts/") if key.endswith(left.rsplit("/", 1)[-1]))
        assert created_at(training, receipt) < created_at(training, left), "a rank has left before it was counted"


def created_at(training: TrainingRun, key: str) -> int:
    found = json.loads(training.server.etcdctl("get", "-w", "json", key))["kvs"]
    return int(found[0]["create_revision"])


def test_a_checkpoint_is_requested_and_awaited(training: TrainingRun, operator: Operator, tmp_path: Path) -> None:
    trainers = training.start_all(2, f"--save-to={tmp_path}")
    sentence = operator.receipt("checkpoint", "gpt-a")
    step = said_at(trainers, "asked to save")
    assert re.match(
        rf"checkpoint: requested, armed on 2/2 ranks, asked for in step {step} on 2/2, checkpoint {step}-\d+ saved by",
        sentence,
    ), sentence
    assert f"saved   step {step}  {step}-" in operator.types("status", "gpt-a").out
    wait_for(lambda: (training.key("reports/metrics/0") or {}).get("restores") is False, "what rank 0 offers")
    assert "no Checkpointer and no run.on_restore function" in operator.is_refused("restore", "latest")
    training.stop()


def test_a_loop_that_saves_nothing_is_reported(training: TrainingRun, operator: Operator) -> None:
    """Long before the timeout: no rank has begun to write when all ranks are far past the step."""
    training.start_all(2)
    ended = operator.types("checkpoint", "gpt-a", "--wait", "--timeout", "60")
    assert ended.code == 12
    assert "saved nothing: does the loop call ckpt.save(step) when run.checkpoint_requested is set?" in ended.out
    training.stop()


def test_an_action_runs_and_is_listed(training: TrainingRun, operator: Operator) -> None:
    trainers = training.start_all(4, "--action=evaluate", nodes="ab")
    everywhere = {"name": "evaluate", "ranks": "0-3", "everywhere": True}
    wait_for(lambda: operator.sees(control.actions)["actions"] == [everywhere], "declared on all ranks")
    assert operator.types("act", "gpt-a").out == "evaluate\n"
    sentence = operator.receipt("act", "gpt-a", "evaluate")
    step = said_at(trainers, "evaluate", "after") + 1
    assert sentence.startswith(f"act evaluate: requested, armed on 4/4 ranks, evaluate ran before step {step} on 4/4, ")
    unknown = operator.is_refused("action", "evalute")
    assert "the training script declares no action 'evalute'; did you mean evaluate?" in unknown
    assert training.keys("commands/") == []
    training.stop()


def test_an_action_that_only_some_ranks_declare_is_refused_and_named(training: TrainingRun, operator: Operator) -> None:
    for trainer in (training.start(0, 2, "--action=evaluate"), training.start(1, 2)):
        trainer.wait_said("joined")
    here = {"name": "evaluate", "ranks": "0", "everywhere": False}
    wait_for(lambda: operator.sees(control.actions)["actions"] == [here], "declared on rank 0, not on rank 1")
    refused = operator.is_refused("action", "evaluate")
    assert "1 rank did not declare action 'evaluate' (1): all ranks must" in refused
    training.stop()


def test_a_run_is_restored_to_a_checkpoint(training: TrainingRun, operator: Operator, tmp_path: Path) -> None:
    trainers = training.start_all(2, f"--save-to={tmp_path}", "--restores")
    saved = operator.saves()
    unknown = operator.is_refused("restore", "7-7")
    assert f"there is no checkpoint '7-7'; there are {saved['id']} (instep checkpoints)" in unknown
    sentence = operator.receipt("restore", "gpt-a", "latest")
    at = said_at(trainers, "restored", "at")
    said = f"all ranks went back before step {at} and continue with step {saved['step'] + 1} on 2/2, "
    assert sentence.startswith(f"restore {saved['id']}: requested, armed on 2/2 ranks, {said}")
    entry = operator.sees(control.history)["entries"][0]
    assert (entry["kind"], entry["name"], entry["step"]) == ("restore", saved["id"], at)
    training.stop()


def test_changes_made_while_no_rank_trains_are_in_the_history_and_can_be_rolled_back(
    training: TrainingRun, operator: Operator
) -> None:
    def trains() -> dict[str, Any]:
        trainer = training.start(0, 1, "--steps", "3")
        held = trainer.wait_said("joined")["config"]
        assert trainer.finish() == 0
        return dict(held)

    trains()
    operator.types("set", "gpt-a", "lr=0.2", "--author", "ann", "--why", "slower")
    operator.types("set", "gpt-a", "clip=2", "--author", "bob")
    assert trains()["lr"] == 0.2
    wait_for(lambda: training.keys("history/starts/2/step"), "the first step of view 2 in the history")
    entries = operator.sees(control.history)["entries"]
    assert [(entry["outcome"], entry["view"], entry["step"]) for entry in entries] == [("started", 2, 0)] * 2
    assert [(entry["author"], entry["reason"]) for entry in entries] == [("bob", None), ("ann", "slower")]
    differs = operator.sees(lambda client, keys: control.diff(client, keys, "v1", "v2"))
    assert {item["name"]: item["after"] for item in differs["changes"]} == {"lr": 0.2, "clip": 2.0}

    rolled_back = operator.types("rollback", "gpt-a", "v2", "--author", "ann", "--json").json
    assert (rolled_back["plan"], rolled_back["view"]) == (None, 2)
    held = trains()
    assert (held["lr"], held["clip"]) == (3e-4, 1.0)
    assert operator.sees(control.history)["entries"][0]["reason"] == "rollback of the start of view 2"
