"""Commands of an operator: executed by every rank at one step, or declined with the reason."""

from __future__ import annotations

import json
import uuid
from typing import Any

from instep.protocol.records import Command
from run.harness import Trainer, TrainingRun, wait_for


def order(training: TrainingRun, kind: Any, **fields: Any) -> str:
    """Writes a command as any client with a put could; returns its id."""
    name = uuid.uuid4().hex[:12]
    document = Command(kind=kind, author="op@here", **fields).encode()
    training.server.etcdctl("put", "--", f"{training.namespace}/gpt-a/commands/{name}", document)
    return name


def wait_directive(training: TrainingRun, **fields: Any) -> dict[str, Any]:
    def directive() -> dict[str, Any] | None:
        found = training.key("state/agreed")["directive"]
        return found if all(found.get(name) == value for name, value in fields.items()) else None

    return dict(wait_for(directive, f"directive {fields}"))


def wait_declined(training: TrainingRun, name: str) -> str:
    return str(wait_for(lambda: training.key(f"state/declined/{name}"), "declined")["why"])


def paused_at(training: TrainingRun) -> int:
    def all_stand() -> int | None:
        at = training.key("state/agreed")["directive"].get("paused_at")
        plan = training.key("state/agreed")["plan"]
        receipts = training.keys(f"reports/receipts/{plan}/")
        return at if at is not None and receipts else None

    return int(wait_for(all_stand, "paused"))


def steps_said(trainers: list[Trainer], event: str) -> set[int]:
    return {int(trainer.wait_said(event)["step"]) for trainer in trainers}


def test_stop_ends_all_ranks_at_one_step_after_a_save(training: TrainingRun) -> None:
    """The step with the save is the last one, the same on every rank, and they leave cleanly."""
    trainers = training.start_all(4, nodes="ab")
    order(training, "stop", reason="enough")
    (saved,) = steps_said(trainers, "asked to save")
    assert steps_said(trainers, "stopped") == {saved + 1}
    assert trainers[0].wait_said("stopped")["reason"] == "stopped by op@here: enough"
    assert [trainer.finish() for trainer in trainers] == [0, 0, 0, 0]


def test_stop_without_a_save_ends_before_the_gate(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    order(training, "stop", save=False)
    (gate,) = steps_said(trainers, "stopped")
    assert gate == training.key("state/agreed")["directive"]["ends_at"]
    assert not trainers[0].said("asked to save")


def test_paused_ranks_wait_before_the_same_step_and_apply_changes_there(training: TrainingRun) -> None:
    """A change made while the run is paused applies from the very step before which they wait."""
    trainers = training.start_all(4, nodes="ab")
    order(training, "pause", reason="look at it")
    gate = paused_at(training)
    training.put("lr", "0.01")
    wait_for(lambda: training.key("state/agreed")["values"]["lr"] == 0.01, "agreed while paused")
    assert training.key("state/agreed")["gate"] == gate
    order(training, "resume")
    assert {trainer.wait_config(lr=0.01) for trainer in trainers} == {gate}
    training.stop()


def test_a_pause_outlives_the_agent_and_the_leader(training: TrainingRun) -> None:
    import os
    import signal

    trainers = training.start_all(2, nodes="ab")
    order(training, "pause")
    gate = paused_at(training)
    for node in "ab":
        os.kill(training.agent_pid(node), signal.SIGKILL)
    order(training, "resume")
    wait_for(lambda: "paused_at" not in training.key("state/agreed")["directive"], "resumed")
    training.put("lr", "0.02")
    steps = {trainer.wait_config(lr=0.02) for trainer in trainers}
    assert len(steps) == 1
    assert steps.pop() >= gate
    training.stop()


def test_a_paused_run_that_restarts_stays_paused_until_it_is_resumed(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    order(training, "pause", reason="maintenance")
    paused_at(training)
    for trainer in trainers:
        trainer.kill()
        trainer.finish()
    again = training.start_all(2)
    wait_for(lambda: all(any("maintenance" in text for text in t.errors) for t in again), "waiting, with the reason")
    order(training, "resume")
    assert {trainer.wait_said("config")["step"] for trainer in again} == {0}
    training.stop(*again)


def test_an_action_runs_on_every_rank_before_one_step(training: TrainingRun) -> None:
    trainers = training.start_all(4, "--action=evaluate", nodes="ab")
    order(training, "action", name="evaluate")
    assert len({int(trainer.wait_said("evaluate")["after"]) for trainer in trainers}) == 1
    training.stop()
    assert all(len(trainer.said("evaluate")) == 1 for trainer in trainers)


def test_an_action_that_one_rank_does_not_declare_is_declined(training: TrainingRun) -> None:
    first = training.start(0, 2, "--action=evaluate")
    second = training.start(1, 2)
    first.wait_said("joined")
    second.wait_said("joined")
    name = order(training, "action", name="evaluate")
    assert "declares no such action" in wait_declined(training, name)
    training.stop()
    assert not first.said("evaluate")


def test_a_checkpoint_is_requested_from_all_ranks_at_the_same_step(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    order(training, "checkpoint")
    assert len(steps_said(trainers, "asked to save")) == 1
    training.stop()
    assert all(len(trainer.said("asked to save")) == 1 for trainer in trainers)


def test_an_impossible_command_is_declined_with_the_reason(training: TrainingRun) -> None:
    training.start_all(2)
    assert wait_declined(training, order(training, "resume")) == "the run is not paused"
    assert "there is no checkpoint '7-7'" in wait_declined(training, order(training, "restore", name="7-7"))
    training.server.etcdctl("put", "--", f"{training.namespace}/gpt-a/commands/odd", json.dumps({"kind": "dance"}))
    assert "no command that this version" in wait_declined(training, "odd")
    order(training, "pause")
    paused_at(training)
    assert wait_declined(training, order(training, "pause")) == "the run is already paused"
    assert "resume it first" in wait_declined(training, order(training, "checkpoint"))
    order(training, "resume")
    training.stop()


def test_a_stopped_run_starts_again(training: TrainingRun) -> None:
    """A request to the former workers is not carried out for the next ones."""
    trainers = training.start_all(2)
    order(training, "stop")
    assert [trainer.finish() for trainer in trainers] == [0, 0]
    order(training, "stop", reason="too late")
    again = training.start_all(2)
    training.put("lr", "0.05")
    for trainer in again:
        trainer.wait_config(lr=0.05)
    assert not again[0].said("stopped")
    training.stop(*again)


def test_a_rank_replaced_before_it_executed_a_command_owes_its_receipt(training: TrainingRun) -> None:
    """No value was changed before, so there is no gate to inherit: later changes must not wait for the dead rank."""
    first, second = training.start_all(2, "--step-s=0.2", nodes="ab")
    first.wait_said("config")
    order(training, "checkpoint")
    wait_for(lambda: training.keys("state/plans/1/decision"), "agreed")
    second.kill()
    second.finish()
    third = training.start(1, 2, "--step-s=0.2", node="b")
    third.wait_said("joined")
    training.put("lr", "0.01")
    wait_for(lambda: training.key("state/agreed")["values"]["lr"] == 0.01, "agreed after the command")
    training.stop(first, third)
