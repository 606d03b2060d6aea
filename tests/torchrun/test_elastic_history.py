"""Agents of torchrun with --rdzv-backend=etcd3 while etcd's history goes back: the workers train on, and whatever they
need etcd for later still works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.harness.fork_server import ForkServer

from instep.testing import EtcdServer
from run.harness import wait_for
from torchrun.elastic import TTL_S, Agent, ElasticRun

pytestmark = pytest.mark.torch

SAID = "etcd's history has changed"


@pytest.fixture
def elastic_alone(elastic_folder: Path, fork_server: ForkServer, namespace: str) -> Iterator[ElasticRun]:
    """A run on a server of its own, which the test may put back."""
    with EtcdServer() as server:
        run = ElasticRun(server, elastic_folder, fork_server, namespace=namespace)
        yield run
        run.close()


def wait_written_back(elastic: ElasticRun, agents: list[Agent], spares: list[Agent], times: int) -> None:
    """All have noticed, have registered again, and say so; no worker has been started anew."""
    seen = [agent.rounds for agent in agents]
    for agent in (*agents, *spares):
        told = f"{agent.name} to tell\n{elastic.story()}"
        wait_for(lambda agent=agent: agent.log.count(SAID) >= times, told, 20.0)  # type: ignore[misc]
    elastic.wait_registered(len(agents) + len(spares))
    until = time.monotonic() + TTL_S
    wait_for(lambda: time.monotonic() > until, "what was brought back to end with its lease")
    assert [agent.rounds for agent in agents] == seen
    assert [agent.code for agent in (*agents, *spares)] == [None] * (len(agents) + len(spares))


def test_etcd_is_emptied_and_later_restored_while_workers_train_and_a_spare_waits(elastic_alone: ElasticRun) -> None:
    elastic = elastic_alone
    server = elastic.server
    assert isinstance(server, EtcdServer)
    first, second = elastic.start("1:2"), elastic.start("1:2")
    before = elastic.wait_world([first, second])
    spare = elastic.start("1:2")
    elastic.wait_registered(3)
    snapshot = server.snapshot()
    server.wipe()
    wait_written_back(elastic, [first, second], [spare], 1)
    assert "the workers continue" in first.log
    second.die()
    later = elastic.wait_world([first, spare], other_than=[before])
    server.restore(snapshot)  # it shows the first round again, and the dead node in it
    wait_written_back(elastic, [first, spare], [], 2)
    assert elastic.wait_world([first, spare]) == later
    elastic.finish(first, spare)
