"""Agents of torchrun with --rdzv-backend=etcd3 that come, go and die: who trains with whom, and at whose expense."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

from run.harness import wait_for
from torchrun.elastic import Agent, ElasticRun

pytestmark = pytest.mark.torch

FORMATIONS = 20
SEED = int(os.environ.get("ELASTIC_SEEDS", "1").split(",")[0])
FORMED_S = 0.3
"""About as long as a round takes from its document to its workers."""


def restarts(agent: Agent) -> int:
    """How much of --max-restarts has been used."""
    return int(agent.last["restarts"])


def test_two_nodes_train_with_gloo_and_a_later_run_may_use_their_id(elastic: ElasticRun) -> None:
    one, other = elastic.start("2", how="gloo"), elastic.start("2", how="gloo")
    elastic.wait_world([one, other])
    elastic.finish(one, other)
    later, fellow = elastic.start("2"), elastic.start("2")
    elastic.wait_world([later, fellow])
    elastic.finish(later, fellow)
    assert elastic.key("state/round")["epoch"] == 2


def test_a_new_node_is_taken_in_and_the_loss_of_rank_0_is_survived(elastic: ElasticRun) -> None:
    """Scale-up with the old rank 0, on which torchrun's own handler hangs; then that very node dies."""
    first = elastic.start("1:3")
    alone = elastic.wait_world([first])
    second = elastic.start("1:3")
    two = elastic.wait_world([first, second], other_than=[alone])
    assert (first.last["rank"], second.last["rank"]) == (0, 1)
    third = elastic.start("1:3")
    three = elastic.wait_world([first, second, third], other_than=[two])
    assert [agent.last["rank"] for agent in (first, second, third)] == [0, 1, 2]
    first.die()
    again = elastic.wait_world([second, third], other_than=[three])
    assert [agent.last["rank"] for agent in (second, third)] == [0, 1]
    back = elastic.start("1:3")
    elastic.wait_world([second, third, back], other_than=[again])
    elastic.finish(second, third, back)


def test_a_node_that_is_told_to_end_costs_the_others_no_retry(elastic: ElasticRun) -> None:
    """Where its workers' end does not end theirs first."""
    stays, goes = elastic.start("1:2", how="alone", max_restarts=0), elastic.start("1:2", how="alone", max_restarts=0)
    both = elastic.wait_world([stays, goes])
    goes.tell(signal.SIGTERM)
    elastic.wait_world([stays], other_than=[both])
    assert goes.wait_ended() != 0
    elastic.finish(stays)


def test_a_spare_waits_takes_a_dead_nodes_place_and_leaves_with_0(elastic: ElasticRun) -> None:
    nodes = [elastic.start("2"), elastic.start("2")]
    first = elastic.wait_world(nodes)
    spare = elastic.start("2")
    elastic.wait_registered(3)
    nodes[1].die()
    second = elastic.wait_world([nodes[0], spare], other_than=[first])
    assert elastic.key("state/round")["seats"][0]["pid"] == nodes[0].pid, "who was there keeps its rank"
    idle = elastic.start("2")
    elastic.wait_registered(3)
    elastic.finish(nodes[0], spare, idle)
    assert idle.rounds == []
    assert second not in first


def test_a_worker_that_fails_restarts_all_and_the_budget_ends_the_run(elastic: ElasticRun) -> None:
    nodes = [elastic.start("2", max_restarts=1), elastic.start("2", max_restarts=1)]
    first = elastic.wait_world(nodes)
    ranks = [agent.last["rank"] for agent in nodes]
    (elastic.folder / "fail-n1-0").touch()
    second = elastic.wait_world(nodes, other_than=[first])
    assert [agent.last["rank"] for agent in nodes] == ranks
    (elastic.folder / "fail-n1-1").touch()
    for agent in nodes:
        assert agent.wait_ended() == 1
    assert second != first
    assert [len(agent.rounds) for agent in nodes] == [2, 2]


def test_what_a_run_of_dead_nodes_left_behind_does_not_hinder_the_next(elastic: ElasticRun) -> None:
    nodes = [elastic.start("2"), elastic.start("2")]
    before = elastic.wait_world(nodes)
    for agent in nodes:
        agent.die()
    nodes = [elastic.start("2"), elastic.start("2")]
    elastic.wait_world(nodes, other_than=[before])
    elastic.finish(*nodes)


@pytest.mark.long
def test_an_agent_frozen_beyond_its_lease_goes_on_where_it_was(elastic: ElasticRun) -> None:
    nodes = [elastic.start("2"), elastic.start("2")]
    before = elastic.wait_world(nodes)
    for agent in nodes:
        agent.tell(signal.SIGSTOP)
        wait_for(lambda: len(elastic.registered()) == 1, "its lease to end")
        agent.tell(signal.SIGCONT)
        elastic.wait_registered(2)
    assert elastic.wait_world(nodes) == before
    elastic.finish(*nodes)


@pytest.mark.long
def test_a_frozen_agent_whose_place_was_taken_becomes_the_spare(elastic: ElasticRun) -> None:
    nodes = [elastic.start("2"), elastic.start("2")]
    before = elastic.wait_world(nodes)
    spare = elastic.start("2")
    elastic.wait_registered(3)
    nodes[0].tell(signal.SIGSTOP)
    after = elastic.wait_world([nodes[1], spare], other_than=[before])
    nodes[0].tell(signal.SIGCONT)
    elastic.wait_registered(3)
    nodes[1].die()
    elastic.wait_world([spare, nodes[0]], other_than=[before, after])
    elastic.finish(spare, nodes[0])


@pytest.mark.long
def test_workers_may_have_a_store_of_their_own(elastic: ElasticRun) -> None:
    """As TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 has it; over the loss of rank 0 too."""
    own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    nodes = [elastic.start("1:2", how="gloo", environ=own), elastic.start("1:2", how="gloo", environ=own)]
    before = elastic.wait_world(nodes)
    first, second = sorted(nodes, key=lambda agent: int(agent.last["rank"]))
    first.die()
    elastic.wait_world([second], other_than=[before])
    assert second.last["shared"] == "False"
    elastic.finish(second)


@pytest.mark.long
def test_nodes_killed_while_a_round_is_formed_hold_it_up_by_a_lease_and_end_nobody(elastic: ElasticRun) -> None:
    dice = random.Random(SEED)
    others = [elastic.start("2:3", max_restarts=1000), elastic.start("2:3", max_restarts=1000)]
    kept = elastic.start("2:3", max_restarts=1000)
    worlds: list[str] = []
    number = 0
    for _ in range(FORMATIONS):
        wait_for(lambda seen=number: (elastic.key("state/round") or {"number": 0})["number"] > seen, "the next round")
        time.sleep(dice.random() * FORMED_S)  # the moment of the fault
        for agent in dice.sample(others, dice.choice([1, 2])):
            agent.die()
        number = elastic.key("state/round")["number"]
        others = [agent for agent in others if agent.code is None]
        others += [elastic.start("2:3", max_restarts=1000) for _ in range(2 - len(others))]
        worlds.append(elastic.wait_world([kept, *others], other_than=worlds))
        number = elastic.key("state/round")["number"]
        (elastic.folder / f"fail-{kept.name}-{kept.last['restarts']}").touch()
    elastic.wait_world([kept, *others], other_than=worlds)
    elastic.finish(kept, *others)


@pytest.mark.long
@pytest.mark.parametrize("what", ["nodes/", "election/"])
def test_keys_that_somebody_deletes_end_nobody_and_a_new_node_still_gets_in(elastic: ElasticRun, what: str) -> None:
    """What agents write about themselves. etcd roles protect `state/`, which only the coordinator writes."""
    nodes = [elastic.start("2:3"), elastic.start("2:3")]
    before = elastic.wait_world(nodes)
    elastic.server.etcdctl("del", "--prefix", f"{elastic.namespace}/elastic/rendezvous/{what}")
    comes = elastic.start("2:3")
    elastic.wait_world([*nodes, comes], other_than=[before])
    assert restarts(nodes[0]) == 0
    elastic.finish(*nodes, comes)
