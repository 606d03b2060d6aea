"""Agents of torchrun with --rdzv-backend=etcd3 while etcd is away: neither an agent nor the training ends by that."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from chaos.harness.fork_server import ForkServer

from instep.testing import EtcdCluster, EtcdMember
from run.harness import wait_for
from torchrun.elastic import TTL_S, Agent, ElasticRun

pytestmark = pytest.mark.torch

AWAY_S = TTL_S + 5.0
SETTLED_S = TTL_S + 2.0
"""By then all that an outage leads to has happened: leases have been taken anew, nodes have been counted."""


def lose_quorum(cluster: EtcdCluster) -> list[EtcdMember]:
    lost = list(cluster.members[:2])
    for member in lost:
        member.kill()
    return lost


def assert_alive(agents: Sequence[Agent], for_s: float) -> None:
    """As long as an outage lasts, no agent ends."""
    deadline = time.monotonic() + for_s
    while time.monotonic() < deadline:
        for agent in agents:
            assert agent.code is None, f"{agent}\n{agent.log[-4000:]}"
        time.sleep(0.1)


def assert_undisturbed(agents: list[Agent], seen: list[list[str]], for_s: float) -> None:
    """Nothing is restarted, and the training continues."""
    assert_alive(agents, for_s)
    for agent, rounds in zip(agents, seen, strict=True):
        assert agent.rounds == rounds, f"{agent} was restarted\n{agent.log[-4000:]}"
    steps = [agent.last["step"] for agent in agents]
    wait_for(lambda: all(a.last["step"] > step for a, step in zip(agents, steps, strict=True)), "the training to go on")


def test_a_lost_quorum_restarts_nobody_though_a_spare_waits(elastic_on_cluster: ElasticRun) -> None:
    elastic = elastic_on_cluster
    cluster = elastic.server
    assert isinstance(cluster, EtcdCluster)
    agents = [elastic.start("2"), elastic.start("2")]
    elastic.wait_world(agents)
    spare = elastic.start("2")
    elastic.wait_registered(3)
    seen = [agent.rounds for agent in agents]
    lost = lose_quorum(cluster)
    assert_undisturbed(agents, seen, AWAY_S)
    for member in lost:
        member.launch()
    cluster.wait_healthy()
    assert_undisturbed(agents, seen, SETTLED_S)
    elastic.finish(*agents, spare)


@pytest.mark.long
def test_workers_that_fail_while_etcd_is_away_start_anew_when_it_is_back(elastic_on_cluster: ElasticRun) -> None:
    elastic = elastic_on_cluster
    cluster = elastic.server
    assert isinstance(cluster, EtcdCluster)
    agents = [elastic.start("2"), elastic.start("2")]
    before = elastic.wait_world(agents)
    lost = lose_quorum(cluster)
    (elastic.folder / "fail-n1-0").touch()
    assert_alive(agents, AWAY_S)
    for member in lost:
        member.launch()
    cluster.wait_healthy()
    elastic.wait_world(agents, other_than=[before])
    assert [agent.last["restarts"] for agent in agents] == [1, 1]
    elastic.finish(*agents)


@pytest.mark.long
def test_a_quorum_that_is_lost_for_a_minute_restarts_nobody(elastic_on_cluster: ElasticRun) -> None:
    elastic = elastic_on_cluster
    cluster = elastic.server
    assert isinstance(cluster, EtcdCluster)
    agents = [elastic.start("1:2"), elastic.start("1:2")]
    elastic.wait_world(agents)
    spare = elastic.start("1:2")
    elastic.wait_registered(3)
    seen = [agent.rounds for agent in agents]
    lost = lose_quorum(cluster)
    assert_undisturbed(agents, seen, 60.0)
    for member in lost:
        member.launch()
    cluster.wait_healthy()
    assert_undisturbed(agents, seen, 3 * SETTLED_S)
    elastic.finish(*agents, spare)


@pytest.mark.long
def test_workers_that_fail_in_a_long_outage_start_anew_after_it(elastic_on_cluster: ElasticRun) -> None:
    """Beyond all timeouts of single requests."""
    elastic = elastic_on_cluster
    cluster = elastic.server
    assert isinstance(cluster, EtcdCluster)
    agents = [elastic.start("2"), elastic.start("2")]
    before = elastic.wait_world(agents)
    lost = lose_quorum(cluster)
    (elastic.folder / "fail-n0-0").touch()
    assert_alive(agents, 40.0)
    for member in lost:
        member.launch()
    cluster.wait_healthy()
    elastic.wait_world(agents, other_than=[before])
    elastic.finish(*agents)


@pytest.mark.long
def test_a_node_that_dies_and_one_that_comes_while_etcd_is_away_are_dealt_with_after_it(
    elastic_on_cluster: ElasticRun,
) -> None:
    elastic = elastic_on_cluster
    cluster = elastic.server
    assert isinstance(cluster, EtcdCluster)
    stays, dies = elastic.start("2"), elastic.start("2")
    before = elastic.wait_world([stays, dies])
    lost = lose_quorum(cluster)
    dies.die()
    comes = elastic.start("2")
    assert_alive([stays, comes], AWAY_S)
    for member in lost:
        member.launch()
    cluster.wait_healthy()
    elastic.wait_world([stays, comes], other_than=[before])
    elastic.finish(stays, comes)


@pytest.mark.long
def test_the_loss_of_any_member_restarts_nobody(elastic_on_cluster: ElasticRun) -> None:
    """So of the one that each agent talks to."""
    elastic = elastic_on_cluster
    cluster = elastic.server
    assert isinstance(cluster, EtcdCluster)
    agents = [elastic.start("2"), elastic.start("2")]
    elastic.wait_world(agents)
    spare = elastic.start("2")
    elastic.wait_registered(3)
    seen = [agent.rounds for agent in agents]
    for member in cluster.members:
        member.kill()
        assert_undisturbed(agents, seen, 0.5)
        member.start()
        cluster.wait_healthy()
    assert_undisturbed(agents, seen, SETTLED_S)
    elastic.finish(*agents, spare)


@pytest.mark.long
def test_a_member_that_is_cut_off_or_frozen_restarts_nobody(
    elastic_folder: Path, fork_server: ForkServer, namespace: str
) -> None:
    """It goes on answering for a while, or keeps its connections and says nothing."""
    with EtcdCluster(proxied=True) as cluster:
        elastic = ElasticRun(cluster, elastic_folder, fork_server, namespace=namespace)
        try:
            agents = [elastic.start("2"), elastic.start("2")]
            world = elastic.wait_world(agents)
            spare = elastic.start("2")
            elastic.wait_registered(3)
            seen = [agent.rounds for agent in agents]
            for member in cluster.members:
                cluster.isolate(member, clients=False)
                assert_undisturbed(agents, seen, 10.0)
                cluster.heal()
                cluster.wait_healthy()
                member.pause()
                assert_undisturbed(agents, seen, 10.0)
                member.resume()
                cluster.wait_healthy()
            assert_undisturbed(agents, seen, SETTLED_S)
            cluster.isolate(cluster.members[0], clients=False)
            agents[0].die()
            elastic.wait_world([agents[1], spare], other_than=[world])
            cluster.heal()
            elastic.finish(agents[1], spare)
        finally:
            elastic.close()


@pytest.mark.long
def test_a_run_that_ends_while_etcd_is_away_ends_well(elastic_on_cluster: ElasticRun) -> None:
    elastic = elastic_on_cluster
    cluster = elastic.server
    assert isinstance(cluster, EtcdCluster)
    agents = [elastic.start("2", options={"close_timeout": "1"}) for _ in range(2)]
    world = elastic.wait_world(agents)
    lost = lose_quorum(cluster)
    elastic.finish(*agents, timeout_s=20.0)
    for member in lost:
        member.launch()
    cluster.wait_healthy()
    later = [elastic.start("2"), elastic.start("2")]
    elastic.wait_world(later, other_than=[world])
    elastic.finish(*later)


def test_an_agent_that_waits_is_ended_by_a_signal_whether_etcd_is_there_or_not(elastic_on_cluster: ElasticRun) -> None:
    elastic = elastic_on_cluster
    cluster = elastic.server
    assert isinstance(cluster, EtcdCluster)
    first, second = elastic.start("3"), elastic.start("3")
    elastic.wait_registered(2)
    first.tell(signal.SIGTERM)
    assert first.wait_ended(10.0) != 0
    elastic.wait_registered(1)
    lose_quorum(cluster)
    second.tell(signal.SIGINT)
    assert second.wait_ended(10.0) != 0
