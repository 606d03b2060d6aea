"""etcd's database reaches its quota: training continues, the reason is reported, and nothing has to be restarted."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from instep.agent.retrying_writer import QuotaMonitor, RetryingWriter
from instep.errors import EtcdFull
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import Decision
from instep.testing import EtcdServer
from run.harness import SOURCE, TrainingRun, assert_in_step, open_plan, wait_for

QUOTA_BYTES = 2 * 1024 * 1024
LONGEST_PAUSE_S = 3.0
CURE = ("compact", "defragment", "etcdctl alarm disarm", "--quota-backend-bytes")


@pytest.fixture
def training(short_folder: Path, namespace: str) -> Iterator[TrainingRun]:
    """A run on an etcd with a small quota."""
    with EtcdServer(extra_args=[f"--quota-backend-bytes={QUOTA_BYTES}"]) as server:
        run = TrainingRun(server, short_folder, namespace=namespace)
        yield run
        run.close()


def fill(server: EtcdServer) -> None:
    """Writes until the database accepts no more."""

    async def write() -> None:
        async with Client(server.endpoints) as client:
            for number in range(1000):
                await client.put(f"/junk/{number}", "x" * 100_000)

    with pytest.raises(EtcdFull, match="takes no writes"):
        asyncio.run(write())


def cure(server: EtcdServer) -> None:
    """The content of the sentence."""
    server.etcdctl("del", "--prefix", "/junk/")
    found = json.loads(server.etcdctl("get", "nothing", "-w", "json"))
    server.etcdctl("compact", str(found["header"]["revision"]))
    server.etcdctl("defrag")
    server.etcdctl("alarm", "disarm")


def instep(training: TrainingRun, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **training.environment(), "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "instep", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_full_database_stops_changes_only_until_there_is_space_again(training: TrainingRun) -> None:
    trainers = training.start_all(2, nodes="ab")
    training.put("lr", "0.01")
    for trainer in trainers:
        trainer.wait_config(lr=0.01)
    fill(training.server)
    wait_for(lambda: all("takes no writes" in training.agent_log(node) for node in "ab"), "the agents to say so")
    wait_for(lambda: any("takes no writes" in line for line in trainers[0].errors), "the training's log to say so")
    shown = instep(training, "status", "gpt-a")
    refused = instep(training, "set", "gpt-a", "lr=0.02")
    assert (shown.returncode, refused.returncode) == (0, 3)
    for part in ("takes no writes", *CURE):
        assert part in " ".join(shown.stdout.split())
        assert part in refused.stderr
    assert json.loads(instep(training, "status", "gpt-a", "--json").stdout)["trouble"]
    os.kill(training.agent_pid("a"), signal.SIGKILL)
    wait_for(lambda: training.agent_log("a").count("has connected") == 2, "the rank to meet its next agent")
    cure(training.server)
    training.put("lr", "0.02")
    assert len({trainer.wait_config(lr=0.02) for trainer in trainers}) == 1
    assert len(training.keys("reports/members/")) == 2
    for node in "ab":
        log = training.agent_log(node)
        assert log.count(CURE[2]) <= 2, "once for each agent of the node"
        assert sum("full" in line for line in log.splitlines()) < 12, log
    assert "accepts writes again" in training.agent_log("b")
    for item in training.stop():
        assert item["longest_boundary_s"] < LONGEST_PAUSE_S
    assert_in_step(*trainers)


def test_a_worker_that_joins_a_full_database_learns_why_it_waits(training: TrainingRun) -> None:
    fill(training.server)
    first = training.start(0, 2, node="a")
    wait_for(lambda: any("takes no writes" in line for line in first.errors), "the worker to say why it waits")
    short = training.start(1, 2, "--timeout-s=3", node="a")  # whose agent is there: its time is the wait alone
    error = short.wait_said("error")
    assert error["kind"] == "JoinTimeout"
    for part in ("takes no writes", *CURE):
        assert part in error["text"], error
    short.finish()
    trainers = [first, training.start(1, 2, node="b")]
    cure(training.server)
    for trainer in trainers:
        trainer.wait_said("joined")
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    training.stop(*trainers)
    assert_in_step(*trainers)


def test_a_rank_at_a_gate_continues_although_the_full_database_accepts_no_decision(training: TrainingRun) -> None:
    """One rank is stuck, so the plan stays open; the other one reaches its gate when no abort can be written."""
    with open_plan(training) as plan:
        fill(training.server)
        plan.go_to_gate()
        wait_for(lambda: "can no longer be committed" in training.agent_log("a"), "the rank to come to its gate")
        decision = f"state/plans/{plan.number}/decision"
        assert training.key(decision) is None
        plan.let_go()
        cure(training.server)
        assert len({trainer.wait_config(lr=0.01) for trainer in (plan.held, plan.stuck)}) == 1
        assert training.key(decision)["commit"] is False
        done = training.stop(plan.held, plan.stuck)
    assert done[0]["longest_boundary_s"] < LONGEST_PAUSE_S, "a moment at the gate"
    assert_in_step(plan.held, plan.stuck)


def test_a_plan_deleted_to_make_space_is_not_taken_for_an_abort(
    training: TrainingRun, caplog: pytest.LogCaptureFixture
) -> None:
    """It was committed, and others have applied it; the rank at the gate gets no answer before the decision is
    known."""
    keys = Keys(training.namespace, "gpt-a")
    told: list[Decision] = []

    async def main() -> None:
        async with Client(training.server.endpoints) as client:
            effects = RetryingWriter(client, keys, QuotaMonitor(lambda text: None))
            effects.settle(1, Decision(commit=False), told.append)
            await asyncio.to_thread(wait_for, lambda: "is no longer in etcd" in caplog.text, "a word about it")
            await effects.drain(0.1)

    fill(training.server)
    with caplog.at_level(logging.WARNING, "instep"):
        asyncio.run(main())
    assert told == []
