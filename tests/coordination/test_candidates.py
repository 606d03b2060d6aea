"""The candidate keys of a node when a test delays the network: none of a worker that has left remains."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from model_client import Request
from model_cluster import Cluster

from instep.protocol.records import Leader


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(((0, 1), (2,)), lockstep=True) as running:
        for _ in range(50):
            running.go()
            running.loop.advance(0.1)
        assert leads(running) == 0
        yield running


def leads(cluster: Cluster) -> int | None:
    found = cluster.store.get(cluster.keys.leader)
    return Leader.decode(found.value).rank if found is not None else None


def candidates(cluster: Cluster) -> list[str]:
    return [item.text for item in cluster.store.range(cluster.keys.election).kvs if "/.gone/" not in item.key]


def standing(cluster: Cluster) -> Request[Any]:
    """The pending request that puts a candidate key."""
    pending = cluster.hosts[0].client.pending
    (found,) = [request for request in pending if f"put {cluster.keys.election}" in request.text]
    pending.remove(found)
    return found


def later(cluster: Cluster, seconds: float = 15.0) -> None:
    for _ in range(int(seconds * 10)):
        cluster.go()
        cluster.loop.advance(0.1)


@pytest.mark.parametrize("applied", ["before", "late"])
def test_an_unconfirmed_candidate_of_a_worker_that_leaves_is_removed(cluster: Cluster, applied: str) -> None:
    """Rank 0 dies, the candidate names rank 1, the reply is lost, and rank 0 is back before the agent asks again."""
    node = cluster.hosts[0]
    node.client.hold_calls()
    cluster.kill(cluster.workers[0], lose_part=False)
    request = standing(cluster)
    if applied == "before":
        request.lose_reply()
    else:
        request.lose()
    node.client.release_calls()
    cluster.start(0, node)
    later(cluster)
    if applied == "late":
        request.lose_reply()
        later(cluster)
    assert len(candidates(cluster)) == 2
    assert leads(cluster) is not None
    cluster.kill(cluster.workers[2], lose_part=False)
    cluster.hosts[1].crash(keep_down=True)
    cluster.start(2, cluster.hosts[1])
    later(cluster, 40.0)
    assert leads(cluster) == 0, candidates(cluster)
