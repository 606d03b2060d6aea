"""Runs of real processes that replay a schedule, and the records of how each view began."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from instep.control import Keys, schedule
from instep.etcd import Client
from instep.schedule import Schedule, ScheduledChange
from run.harness import Trainer, TrainingRun, at_step, wait_for

BEGUN: dict[str, Any] = {"lr": 0.01, "clip": 1.0, "batch_size": 32, "name": "adam", "dropout": 0.1}


def write(path: Path, *changes: tuple[int, dict[str, Any]], values: dict[str, Any] = BEGUN) -> str:
    path.write_text(Schedule("gpt-a", values, tuple(ScheduledChange(*change) for change in changes)).encode())
    return f"--replay={path}"


def exported(training: TrainingRun) -> Schedule:
    async def read() -> Schedule:
        async with Client(training.server.endpoints) as client:
            return await schedule(client, Keys(training.namespace, "gpt-a"))

    return asyncio.run(read())


def steps_of(trainer: Trainer) -> list[tuple[int, float]]:
    return [(event["step"], event["config"]["lr"]) for event in trainer.said("config")]


def test_the_values_of_the_file_are_used_at_its_steps_whatever_is_set(training: TrainingRun, tmp_path: Path) -> None:
    training.put("lr", "0.7")
    replay = write(tmp_path / "a.json", (30, {"lr": 0.02}), (60, {"lr": 0.03, "name": "sgd"}))
    trainers = training.start_all(2, replay)
    wait_for(lambda: training.key("state/rejected/lr"), "the rejection of what was desired")
    training.put("clip", "5.0")
    rejection = wait_for(lambda: training.key("state/rejected/clip"), "the rejection of a live change")
    assert "replays a schedule" in rejection["reason"]
    for trainer in trainers:
        trainer.wait_config(lr=0.03)
    training.stop()
    for trainer in trainers:
        assert steps_of(trainer) == [(0, 0.01), (30, 0.02), (60, 0.03)]
        assert at_step(trainer, 60) == {**BEGUN, "lr": 0.03, "name": "sgd"}
        assert trainer.said("joined")[0]["config"] == BEGUN


def test_a_start_in_the_middle_takes_the_values_of_that_step(training: TrainingRun, tmp_path: Path) -> None:
    replay = write(tmp_path / "a.json", (30, {"lr": 0.02}), (60, {"lr": 0.03}))
    (trainer,) = training.start_all(1, replay, "--start=45")
    trainer.wait_config(lr=0.03)
    training.stop()
    assert steps_of(trainer) == [(45, 0.02), (60, 0.03)]


@pytest.mark.parametrize("second", ["other", "none"])
def test_a_rank_with_another_file_or_none_is_refused(training: TrainingRun, tmp_path: Path, second: str) -> None:
    one = training.start(0, 2, write(tmp_path / "a.json"))
    more = [write(tmp_path / "b.json", (30, {"lr": 0.02}))] if second == "other" else []
    two = training.start(1, 2, *more)
    error = wait_for(lambda: one.said("error") or two.said("error"), "a refusal")[0]
    assert (error["kind"], error["exit_code"]) == ("JoinRefused", 7)
    assert "schedule" in error["text"]


def test_a_file_that_cannot_be_replayed_is_refused_before_any_connection(training: TrainingRun, tmp_path: Path) -> None:
    replay = write(tmp_path / "a.json", (30, {"lr": 7.0}))
    trainer = training.start(0, 1, replay, environment={"INSTEP_ETCD": "http://127.0.0.1:1"})
    error = trainer.wait_said("error")
    assert (error["kind"], error["exit_code"]) == ("ConfigError", 5)
    assert "at step 30 (lr: input should be less than or equal to 1)" in error["text"]


def test_each_fresh_start_is_kept_and_folded_into_the_schedule(training: TrainingRun) -> None:
    (trainer,) = training.start_all(1)
    training.put("lr", "0.5")
    gate = trainer.wait_config(lr=0.5)
    training.stop()
    first = training.key("history/starts/1")
    assert (first["view"], first["plan"], first["values"]["lr"]) == (1, 0, 3e-4)
    assert first["at"]
    assert training.key("history/starts/1/step") == {"step": 0}

    training.put("lr", "0.25")
    (again,) = training.start_all(1, f"--start={gate + 5}")
    again.wait_config(lr=0.25)
    wait_for(lambda: training.key("history/starts/2/step"), "the first step of the second view")
    found = exported(training)
    training.stop(again)
    assert found.values["lr"] == 3e-4
    assert [(change.step, change.values) for change in found.changes] == [(gate, {"lr": 0.5}), (gate + 5, {"lr": 0.25})]


def test_a_rank_that_joins_a_continuing_run_starts_no_new_segment(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    wait_for(lambda: training.key("history/starts/1/step"), "the first step")
    trainers[0].kill()
    trainers[0].finish()
    replacement = training.start(0, 2, "--start=1000")
    replacement.wait_config()
    assert training.keys("history/starts/") == [
        f"{training.namespace}/gpt-a/history/starts/{name}" for name in ("1", "1/step")
    ]
    training.stop(trainers[1], replacement)
