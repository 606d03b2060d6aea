"""A run on an etcd of three members that are killed, frozen and left without a quorum: agents, workers, changes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from instep.errors import EtcdUnavailable
from instep.etcd import Client
from instep.testing import EtcdCluster
from run.harness import PATIENCE_S, Trainer, TrainingRun, assert_in_step, wait_for

IDLE_PAUSE_S = 3.0
"""What a boundary may take when nothing is pending, whatever etcd does: a look at a word, and a busy machine."""
GATE_PAUSE_S = 8.0
"""What a boundary may take at a gate while the members elect another leader."""
TTL_S = 5


@pytest.fixture
def training(short_folder: Path, namespace: str) -> Iterator[TrainingRun]:
    with EtcdCluster(members=3) as cluster:
        run = TrainingRun(cluster, short_folder, namespace=namespace, ttl_s=TTL_S)
        yield run
        run.close()


def put(training: TrainingRun, name: str, value: object, timeout_s: float = 30.0) -> None:
    """Writes a desired value through any outage: the same text again is the same change."""

    async def write() -> None:
        async with Client(training.server.endpoints) as client:
            async with asyncio.timeout(timeout_s):
                while True:
                    try:
                        await client.put(f"{training.namespace}/gpt-a/config/{name}", json.dumps(value))
                        return
                    except EtcdUnavailable:
                        continue

    asyncio.run(write())


def same_step(trainers: list[Trainer], timeout_s: float = PATIENCE_S, **values: object) -> None:
    assert len({trainer.wait_config(timeout_s, **values) for trainer in trainers}) == 1


def longest_boundary_s(training: TrainingRun, *trainers: Trainer) -> float:
    """Ends the run; returns the longest boundary of any of its ranks."""
    return max(item["longest_boundary_s"] for item in training.stop(*trainers))


def cluster_of(training: TrainingRun) -> EtcdCluster:
    assert isinstance(training.server, EtcdCluster)
    return training.server


@pytest.mark.parametrize("changes", [15, pytest.param(51, marks=pytest.mark.long)])
def test_members_killed_in_turn_lose_no_change(training: TrainingRun, changes: int) -> None:
    """Each change has its own name, so none can replace another."""
    cluster = cluster_of(training)
    trainers = training.start_all(4, "--schema=none", nodes="ab")
    each = changes // 3
    for number in range(changes):
        member = cluster.members[number // each]
        if number % each == 0:
            member.kill()
        put(training, f"c{number}", number)
        if number % each == each // 2:
            member.start()
    cluster.start()
    same_step(trainers, 3 * PATIENCE_S, **{f"c{number}": number for number in range(changes)})
    assert longest_boundary_s(training) < GATE_PAUSE_S
    assert_in_step(*trainers)
    assert training.key("state/view")["number"] == 1
    for node in "ab":
        assert "the lease was lost" not in training.agent_log(node)


def test_a_frozen_member_that_led_costs_no_step_and_no_change(training: TrainingRun) -> None:
    cluster = cluster_of(training)
    trainers = training.start_all(2, nodes="ab")
    token = wait_for(lambda: training.key("state/leader"), "a leader")["token"]
    frozen = cluster.leader()
    frozen.pause()
    paused_at = time.monotonic()
    put(training, "lr", 0.01)
    same_step(trainers, lr=0.01)  # the other two members are enough
    time.sleep(max(0.0, paused_at + 8 - time.monotonic()))  # the fault: longer than the lease
    frozen.resume()
    cluster.wait_healthy()
    put(training, "lr", 0.02)
    same_step(trainers, lr=0.02)
    # The member that wakes may end a lease that was kept (docs/decisions/0008): then another node leads.
    assert training.key("state/leader")["token"] >= token, training.agent_log("a") + training.agent_log("b")
    assert longest_boundary_s(training) < GATE_PAUSE_S
    assert_in_step(*trainers)


@pytest.mark.parametrize("lost_s", [8, pytest.param(15, marks=pytest.mark.long)])
def test_a_quorum_lost_for_longer_than_the_lease_stops_no_step(training: TrainingRun, lost_s: float) -> None:
    cluster = cluster_of(training)
    trainers = training.start_all(2, nodes="ab")
    put(training, "lr", 0.01)
    same_step(trainers, lr=0.01)
    wait_for(lambda: training.keys("reports/receipts/"), "nothing to be pending")
    for member in cluster.members[:2]:
        member.pause()
    time.sleep(lost_s)  # the fault: longer than the lease
    for member in cluster.members[:2]:
        member.resume()
    cluster.wait_healthy()
    put(training, "lr", 0.02)
    same_step(trainers, lr=0.02)
    assert training.key("state/view")["number"] == 1
    log = training.agent_log()
    assert sum("cannot be" in line for line in log.splitlines()) < 20, log
    assert longest_boundary_s(training) < IDLE_PAUSE_S
    assert_in_step(*trainers)


@pytest.mark.parametrize("killed", ["a", pytest.param("ab", marks=pytest.mark.long)])
def test_an_agent_killed_together_with_a_member_is_replaced_through_the_others(
    training: TrainingRun, killed: str
) -> None:
    trainers = training.start_all(2, nodes="ab")
    for number, node in enumerate(killed, start=1):
        member = cluster_of(training).leader()
        os.kill(training.agent_pid(node), signal.SIGKILL)
        member.kill()
        put(training, "lr", number / 100)
        same_step(trainers, lr=number / 100)
        member.start()
    assert longest_boundary_s(training) < GATE_PAUSE_S
    assert_in_step(*trainers)


def test_an_agent_stopped_for_a_moment_keeps_its_lease_and_its_place(training: TrainingRun) -> None:
    trainers = training.start_all(2, nodes="ab")
    leader = wait_for(lambda: training.key("state/leader"), "a leader")
    agent = training.agent_pid("a")
    os.kill(agent, signal.SIGSTOP)
    put(training, "lr", 0.01)
    time.sleep(1.5)  # the fault: shorter than the lease
    os.kill(agent, signal.SIGCONT)
    same_step(trainers, lr=0.01)
    assert training.agent_pid("a") == agent
    assert training.key("state/leader")["token"] == leader["token"]
    assert "the lease was lost" not in training.agent_log("a")
    training.stop()
    assert_in_step(*trainers)


def test_eighty_forked_children_survive_changes_and_the_loss_of_a_member(training: TrainingRun) -> None:
    trainers = [training.start(rank, 2, "--fork=80", "--child-s=3", node="ab"[rank]) for rank in range(2)]
    for trainer in trainers:
        trainer.wait_said("forked")
    member = cluster_of(training).leader()
    member.kill()
    put(training, "lr", 0.01)
    same_step(trainers, lr=0.01)
    for item in training.stop():
        assert item["children"] == [0] * 80
    assert_in_step(*trainers)
