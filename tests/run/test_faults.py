"""Faults during training, and their cost: never a step with two configs, never a change."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from run.harness import TrainingRun, assert_in_step, open_plan, wait_for

LONGEST_PAUSE_S = 3.0
"""What a boundary may take while an agent is replaced: training does not wait for the new one."""


def test_killing_the_agent_loses_no_change_and_stops_no_step(training: TrainingRun) -> None:
    trainers = training.start_all(3)
    for number in range(1, 4):
        agent = training.agent_pid()
        os.kill(agent, signal.SIGKILL)
        training.put("lr", str(number / 100))
        assert len({trainer.wait_config(lr=number / 100) for trainer in trainers}) == 1
    for item in training.stop():
        assert item["longest_boundary_s"] < LONGEST_PAUSE_S
    assert_in_step(*trainers)


def test_an_agent_killed_between_promise_and_decision_changes_nothing(training: TrainingRun) -> None:
    """Slow steps keep plans open for long, so kills hit every phase of a plan."""
    trainers = training.start_all(3, "--step-s=0.05", nodes="abc")
    for number in range(1, 4):
        training.put("lr", str(number / 100))
        time_to_kill = "abc"[number % 3]
        wait_for(lambda n=number: len(training.keys("state/plans/")) >= n, "a plan")
        os.kill(training.agent_pid(time_to_kill), signal.SIGKILL)
        assert len({trainer.wait_config(lr=number / 100) for trainer in trainers}) == 1
    training.stop()
    assert_in_step(*trainers)


def test_the_death_of_the_worker_that_started_the_agent_leaves_the_agent_alive(training: TrainingRun) -> None:
    first = training.start(0, 2)
    wait_for(lambda: training.folder_of().socket.exists(), "the agent")
    agent = training.agent_pid()
    second = training.start(1, 2)
    second.wait_said("joined")
    first.kill()
    first.finish()
    again = training.start(0, 2)
    again.wait_said("joined")
    assert training.agent_pid() == agent
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in (again, second)}) == 1
    training.stop(again, second)


def test_a_restarted_rank_gets_the_agreed_values(training: TrainingRun) -> None:
    trainers = training.start_all(3, nodes="ab")
    training.put("lr", "0.01")
    for trainer in trainers:
        trainer.wait_config(lr=0.01)
    trainers[0].kill()
    trainers[0].finish()
    again = training.start(0, 3)
    joined = again.wait_said("joined")
    assert joined["view"] == 2
    assert joined["config"]["lr"] == 0.01
    training.put("clip", "5.5")
    for trainer in (again, *trainers[1:]):
        trainer.wait_config(clip=5.5)
    training.stop(again, *trainers[1:])


def test_a_change_made_while_a_rank_is_missing_waits_for_its_replacement(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    trainers[1].kill()
    trainers[1].finish()
    wait_for(lambda: len(training.keys("reports/members/")) == 1, "the dead rank's registration to go")
    training.put("lr", "0.01")
    again = training.start(1, 2)
    again.wait_said("joined")
    for trainer in (trainers[0], again):
        trainer.wait_config(lr=0.01)
    training.stop(trainers[0], again)


def test_the_leading_worker_is_replaced_as_soon_as_it_dies(training: TrainingRun) -> None:
    """Its node's lease, for which another node would have to wait, lasts much longer."""
    training.extra_environment["INSTEP_TTL_S"] = "30"
    trainers = training.start_all(3)
    leader = wait_for(lambda: training.key("state/leader"), "a leader")
    victim = trainers[leader["rank"]]
    victim.kill()
    killed_at = time.monotonic()
    wait_for(lambda: training.key("state/leader")["token"] > leader["token"], "another leader")
    assert time.monotonic() - killed_at < 15, "half the lease"
    assert training.key("state/leader")["rank"] != leader["rank"]
    victim.finish()
    training.stop(*(trainer for trainer in trainers if trainer is not victim))


def test_the_leading_node_lost_to_a_freeze_is_replaced_after_its_lease(training: TrainingRun) -> None:
    trainers = training.start_all(2, nodes="ab")
    leader = wait_for(lambda: training.key("state/leader"), "a leader")
    frozen, other = ("a", "b") if leader["rank"] == 0 else ("b", "a")
    agent = training.agent_pid(frozen)
    os.kill(agent, signal.SIGSTOP)
    try:
        wait_for(lambda: training.key("state/leader")["token"] > leader["token"], "another leader")
        assert training.key("state/leader")["node"] == json.loads(training.folder_of(other).node.read_text())["name"]
    finally:
        os.kill(agent, signal.SIGCONT)
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    training.stop()
    assert_in_step(*trainers)


def test_a_stopped_agent_is_replaced_by_its_workers(training: TrainingRun) -> None:
    trainers = training.start_all(2, "--silence-s=3")
    agent = training.agent_pid()
    os.kill(agent, signal.SIGSTOP)
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    assert training.agent_pid() != agent
    for item in training.stop():
        assert item["longest_boundary_s"] < LONGEST_PAUSE_S
    assert_in_step(*trainers)


def test_etcd_paused_beyond_the_lease_loses_no_change_and_stops_no_step(fragile_training: TrainingRun) -> None:
    training = fragile_training
    trainers = training.start_all(2)
    training.put("lr", "0.01")
    for trainer in trainers:
        trainer.wait_config(lr=0.01)
    training.server.pause()
    time.sleep(5)  # what is tested is a time: twice the lease, with etcd away
    training.server.resume()
    training.put("clip", "2.5")
    for trainer in trainers:
        trainer.wait_config(lr=0.01, clip=2.5)
    for item in training.stop():
        assert item["longest_boundary_s"] < LONGEST_PAUSE_S
    assert_in_step(*trainers)


def test_training_survives_a_killed_and_restarted_etcd(fragile_training: TrainingRun) -> None:
    training = fragile_training
    trainers = training.start_all(2, nodes="ab")
    for number in range(1, 3):
        training.server.kill()
        training.server.restart()
        training.put("lr", str(number / 100))
        assert len({trainer.wait_config(lr=number / 100) for trainer in trainers}) == 1
    training.stop()
    assert_in_step(*trainers)


def test_a_rank_that_holds_the_gil_longer_than_the_lease_affects_no_other(training: TrainingRun) -> None:
    holder = training.start(0, 2, "--hold-gil-s=4")
    other = training.start(1, 2, "--step-s=0.05")
    holder.wait_said("holding")
    members = training.keys("reports/members/")
    other.wait_said("config")
    holder.wait_said("held")
    assert training.keys("reports/members/") == members
    assert "the lease was lost" not in training.agent_log()
    assert training.key("state/view")["number"] == 1
    training.put("lr", "0.01")
    for trainer in (holder, other):
        trainer.wait_config(lr=0.01)
    training.stop(holder, other)


def test_forked_children_neither_crash_nor_disturb(training: TrainingRun) -> None:
    trainers = [training.start(rank, 2, "--fork=80") for rank in range(2)]
    for trainer in trainers:
        trainer.wait_said("forked")
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    for item in training.stop():
        assert item["children"] == [0] * 80
    assert_in_step(*trainers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_dead_worker_is_noticed_although_a_child_holds_its_socket(training: TrainingRun, number: int) -> None:
    """The child outlives the worker; only the worker's process shows the death."""
    trainers = training.start_all(2, "--fork=1", "--child-s=60")
    children = [pid for trainer in trainers for pid in trainer.wait_said("forked")["pids"]]
    try:
        trainers[0].kill(number)
        wait_for(lambda: len(training.keys("reports/members/")) == 1, "the registration to go", 30)
        assert all(Path(f"/proc/{pid}").exists() for pid in children)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
    trainers[0].finish()
    training.stop(trainers[1])


def test_the_agent_leaves_when_its_last_worker_has_gone(training: TrainingRun) -> None:
    training.start_all(2)
    training.stop()
    wait_for(lambda: not training.folder_of().socket.exists(), "the agent to leave")
    wait_for(lambda: not training.keys("election/") and not training.keys("reports/members/"), "its keys to go")


def test_a_rank_at_a_gate_waits_for_etcd_and_then_continues(fragile_training: TrainingRun) -> None:
    """One rank is stuck, so the plan stays open; etcd goes; the other rank waits at the gate until it is back."""
    training = fragile_training
    with open_plan(training) as plan:
        training.server.pause()
        plan.go_to_gate()
        wait_for(lambda: any("waits before step" in line for line in plan.held.errors), "the rank to say that it waits")
        training.server.resume()
        decision = wait_for(lambda: training.key(f"state/plans/{plan.number}/decision"), "the decision")
        assert decision["commit"] is False
        plan.let_go()
        done = training.stop(plan.held, plan.stuck)
    assert done[0]["longest_boundary_s"] > 0.5
    assert_in_step(plan.held, plan.stuck)


def test_waiting_too_long_at_a_gate_ends_with_an_error_that_says_so(fragile_training: TrainingRun) -> None:
    """One rank is stuck, so the plan stays open; etcd goes away; the other rank reaches the gate and may not guess."""
    training = fragile_training
    with open_plan(training, "--patience-s=1.5") as plan:
        training.server.pause()
        plan.go_to_gate()
        error = plan.held.wait_said("error")
        training.server.resume()
    assert (error["kind"], error["exit_code"], plan.held.finish()) == ("GateTimeout", 9, 9)
    assert "etcd cannot be read" in error["text"]
    assert all(event["config"]["lr"] == 3e-4 for event in plan.held.said("config"))


def test_a_run_that_crashed_restarts_with_another_world_size(training: TrainingRun) -> None:
    before = training.start_all(2, nodes="ab")
    training.put("lr", "0.01")
    for trainer in before:
        trainer.wait_config(lr=0.01)
        trainer.kill()
        trainer.finish()
    again = training.start_all(3, nodes="abc")
    for trainer in again:
        joined = trainer.said("joined")[0]
        assert (joined["view"], joined["config"]["lr"]) == (2, 0.01)
    training.put("clip", "2.5")
    assert len({trainer.wait_config(clip=2.5) for trainer in again}) == 1
    training.stop(*again)
    assert_in_step(*again)
