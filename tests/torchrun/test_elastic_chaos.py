"""Agents of torchrun that are killed, frozen and told to end at random: who is left trains on, in one world."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from instep.testing import EtcdCluster
from run.harness import wait_for
from torchrun.elastic import TTL_S, Agent, ElasticRun

pytestmark = [pytest.mark.torch, pytest.mark.long]

SEEDS = [int(seed) for seed in os.environ.get("ELASTIC_SEEDS", "1,2,3").split(",")]
DURATION_S = float(os.environ.get("ELASTIC_DURATION_S", "60"))
LIMITS = ("2", "1:3", "2:3", "1:2")
MOST = 4
RECOVERY_S = 40.0


class Chaos:
    """Nodes that come and go; `alive` has those that nobody has ended."""

    def __init__(self, run: ElasticRun, seed: int, cluster: EtcdCluster | None = None) -> None:
        self.run = run
        self.cluster = cluster
        self.dice = random.Random(seed)
        self.nodes = self.dice.choice(LIMITS)
        self.least, self.most = int(self.nodes[0]), int(self.nodes[-1])
        self.alive: list[Agent] = []
        self.done: list[str] = []

    def settle(self) -> None:
        """Enough nodes are there, and as many of them as have room train together."""
        while len(self.alive) < self.least:
            self.begin()
        deadline = time.monotonic() + RECOVERY_S
        while not self.trains():
            self.check()
            assert time.monotonic() < deadline, f"no world of {self.alive} after {self.done}\n{self.run.story()}"
            time.sleep(0.05)
        self.done.append("trains")

    def trains(self) -> bool:
        last = [agent.last for agent in self.alive if agent.last.get("event") == "trains"]
        worlds = {event["world"] for event in last if time.monotonic() - event["at"] < 2.0}
        size = min(self.most, len(self.alive))
        fresh = [event for event in last if event["world"] in worlds and event["size"] == size]
        return len(worlds) == 1 and sorted(event["rank"] for event in fresh) == list(range(size))

    def check(self) -> None:
        for agent in self.alive:
            assert agent.code is None, f"{agent} after {self.done}\n{self.run.story()}"

    def begin(self) -> None:
        agent = self.run.start(self.nodes, max_restarts=10000)
        self.alive.append(agent)
        self.done.append(f"start {agent.name}")

    def harm(self) -> None:
        agent = self.dice.choice(self.alive)
        kinds = ["etcd", "etcd", "quorum"] if self.cluster is not None else []
        kinds += ["die", "die", "crash", "end", "fail", "freeze", "start", "start"]
        kind = self.dice.choice([kind for kind in kinds if kind != "start" or len(self.alive) < MOST])
        self.done.append(f"{kind} {agent.name}")
        if kind == "start":
            self.done.pop()
            self.begin()
        elif kind == "fail":
            self._fail(agent)
        elif kind == "freeze":
            self._freeze(agent)
        elif kind in ("etcd", "quorum"):
            self._lose(1 if kind == "etcd" else 2)
        else:
            self.alive.remove(agent)
            if kind == "die":
                agent.die()
            elif kind == "crash":
                agent.crash()
            else:
                agent.tell(signal.SIGTERM)

    def _fail(self, agent: Agent) -> None:
        if agent.last.get("event") in ("start", "trains"):
            os.kill(agent.last["pid"], signal.SIGKILL) if _runs(agent.last["pid"]) else None

    def _lose(self, members: int) -> None:
        """The members that the last call has lost come back first."""
        assert self.cluster is not None
        self.cluster.start()
        for member in self.dice.sample(self.cluster.members, members):
            member.kill()
        self.done[-1] = f"lose {members} of etcd"
        if members > 1:
            time.sleep(self.dice.choice([0.5, 2.0, TTL_S + 2.0]))
            self.cluster.start()

    def _freeze(self, agent: Agent) -> None:
        agent.tell(signal.SIGSTOP)
        time.sleep(self.dice.choice([0.2, 1.0, TTL_S + 1.0, TTL_S + 7.0]))
        agent.tell(signal.SIGCONT)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def endure(chaos: Chaos, seed: int) -> None:
    for _ in range(chaos.dice.randint(1, MOST)):
        chaos.begin()
    deadline = time.monotonic() + DURATION_S
    while time.monotonic() < deadline:
        chaos.settle()
        for _ in range(chaos.dice.choice([1, 1, 2, 3])):
            time.sleep(chaos.dice.choice([0, 0.05, 0.3, 1.0]) * chaos.dice.random())
            chaos.check()
            if chaos.alive:
                chaos.harm()
    chaos.settle()
    (chaos.run.folder / "stop").touch()
    for agent in chaos.alive:
        assert agent.wait_ended() == 0, f"{agent} after {chaos.done}\n{chaos.run.story()}"
    wait_for(lambda: not chaos.run.registered(), "all to have left")
    print(f"seed {seed}, --nnodes={chaos.nodes}: {', '.join(chaos.done)}")


@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_is_left_trains_on_together(elastic: ElasticRun, seed: int) -> None:
    endure(Chaos(elastic, seed), seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_whoever_is_left_trains_on_together_though_etcd_loses_members(
    elastic_on_cluster: ElasticRun, etcd_cluster: EtcdCluster, seed: int
) -> None:
    endure(Chaos(elastic_on_cluster, seed, etcd_cluster), seed)
