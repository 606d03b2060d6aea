"""What a status tells of torchrun's agents that meet on etcd."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest
from rendezvous_in_etcd import RendezvousInEtcd
from run_in_etcd import RunInEtcd, incarnation_of, with_client

from instep.control import Keys, NodeReport, RendezvousReport, RunStatus, RunSummary, runs, send, status, watch_status
from instep.errors import NotRunning
from instep.etcd import Client
from instep.protocol.records import Elastic
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.node import RendezvousNode
from instep.rendezvous.records import Address, Departure, Limits
from instep.testing import EtcdServer

RUN = "gpt-a"
STORE = Address(host="127.0.0.1", port=29500)


def _look(
    server: EtcdServer,
    namespace: str,
    story: Callable[[RendezvousInEtcd], Awaitable[None]],
    *,
    limits: tuple[int, int] = (2, 3),
) -> tuple[RunStatus, RunSummary]:
    """The status, and the line in the list of runs, after a story."""

    async def work(client: Client) -> tuple[RunStatus, RunSummary]:
        await story(RendezvousInEtcd(client, namespace, RUN, limits=limits))
        (line,) = (await runs(client, namespace)).runs
        return await status(client, Keys(namespace, RUN)), line

    now, line = with_client(server, work)
    assert now.state == line.state
    return now, line


def _rendezvous(now: RunStatus) -> RendezvousReport:
    assert now.rendezvous is not None
    return now.rendezvous


def _places(nodes: tuple[NodeReport, ...]) -> list[tuple[int, str, str]]:
    return [(node.group_rank, node.host, node.state) for node in nodes]


def test_a_run_of_torchrun_alone_is_followed_from_its_first_agent_to_its_end(etcd: EtcdServer, namespace: str) -> None:
    """With the agents' own nodes; no worker of it ever joins."""
    limits = Limits(min_nodes=2, max_nodes=2)

    async def work(client: Client) -> list[tuple[str, int, int, int]]:
        keys = RendezvousKeys(namespace, RUN)
        first, second = (
            RendezvousNode(client, keys, limits, host=host, pid=1, ttl_s=5, last_call_s=0.0)
            for host in ("host-a", "host-b")
        )

        async def seat(node: RendezvousNode) -> None:
            await node.seat(STORE, cause="new", timeout_s=30)

        async def end() -> None:
            await first.finish()
            await first.close()
            await second.close()

        seen: list[tuple[str, int, int, int]] = []
        await first.__aenter__()
        await second.__aenter__()
        tasks = [asyncio.create_task(seat(first))]
        async with aclosing(watch_status(client, Keys(namespace, RUN), tick_s=30)) as statuses:
            async for now in statuses:
                found = _rendezvous(now)
                assert found.state == now.state
                assert not now.live
                fact = (found.state, found.round, found.present, found.needed)
                if not seen or fact != seen[-1]:
                    seen.append(fact)
                match fact:
                    case ("forming", 0, 1, 1):
                        tasks.append(asyncio.create_task(seat(second)))
                    case ("running", 1, 2, 0) if len(tasks) == 2:
                        assert _places(found.nodes) == [(0, "host-a", "running"), (1, "host-b", "running")]
                        tasks.append(asyncio.create_task(end()))
                    case ("closed", 1, 0, 0):
                        assert found.closed_by == "host-a"
                        await asyncio.gather(*tasks)
                        return seen
        raise AssertionError("the statuses ended")

    seen = with_client(etcd, work)
    states = list(dict.fromkeys(state for state, *_ in seen))
    assert states == ["forming", "running", "closed"]


def test_nodes_that_are_not_there_are_told_apart(etcd: EtcdServer, namespace: str) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(7, range(5), cause="failure", restarts=2, wanted=True)
        await rendezvous.depart(1, Departure(by="itself"))
        await rendezvous.depart(2, Departure(by="guard"))
        await rendezvous.unregister(3)
        await rendezvous.register(4, round=7)
        await rendezvous.register(9)

    now, line = _look(etcd, namespace, story, limits=(4, 5))
    found = _rendezvous(now)
    assert _places(found.nodes) == [
        (0, "host-0", "running"),
        (1, "host-1", "left"),
        (2, "host-2", "died"),
        (3, "host-3", "lost"),
        (4, "host-4", "asking"),
    ]
    assert (found.lost, found.lost_count, found.present, found.needed) == ("1-3", 3, 3, 1)
    assert [(node.host, node.pid, node.spare) for node in found.asking] == [("host-9", 109, False)]
    assert (found.state, found.wanted, found.cause, found.restarts) == ("forming", True, "failure", 2)
    assert (found.min_nodes, found.max_nodes, found.round, found.size) == (4, 5, 7, 5)
    assert (line.round, line.nodes) == (7, 5)
    json.dumps(now.to_json())


def test_spares_and_refusals_are_told_while_a_full_round_runs(etcd: EtcdServer, namespace: str) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(1, range(3))
        await rendezvous.register(3, 4)
        for number in (5, 6):
            await rendezvous.refuse(number, "the run has --nnodes=2:3\x1b[2J and this node --nnodes=2")

    found = _rendezvous(_look(etcd, namespace, story)[0])
    assert (found.state, found.spares, found.asking_more, found.present) == ("running", 2, 0, 5)
    assert all(node.spare for node in found.asking)
    assert found.refused == ("the run has --nnodes=2:3\\x1b[2J and this node --nnodes=2",)


def test_a_run_that_nobody_closed_is_stopped_and_tells_who_was_there(etcd: EtcdServer, namespace: str) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(1, range(2))
        await rendezvous.unregister(0, 1)

    now, _ = _look(etcd, namespace, story)
    assert now.state == "stopped"
    assert _places(_rendezvous(now).nodes) == [(0, "host-0", "lost"), (1, "host-1", "lost")]


def test_an_id_that_is_used_again_is_formed_after_its_close(etcd: EtcdServer, namespace: str) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(4, range(2), restarts=1)
        await rendezvous.unregister(0, 1)
        await rendezvous.close(1, "host-0")
        await rendezvous.register(8, epoch=2)

    now, line = _look(etcd, namespace, story)
    found = _rendezvous(now)
    assert (found.state, found.epoch, found.round, found.nodes, found.closed) == ("forming", 2, 4, (), True)
    assert (found.present, found.needed, found.asking[0].host, line.nodes) == (1, 1, "host-8", 0)


def test_a_node_has_the_ranks_and_the_restarts_of_its_workers(etcd: EtcdServer, namespace: str) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(2, range(2), cause="failure", restarts=1)
        run = RunInEtcd(rendezvous.client, Keys(namespace, RUN))
        for rank in range(4):
            elastic = Elastic(restarts=rank // 2, max_restarts=3, group_rank=rank // 2)
            await run.register(rank, incarnation_of(rank), f"node-{rank // 2}", elastic)

    now, _ = _look(etcd, namespace, story)
    nodes = _rendezvous(now).nodes
    assert [(node.ranks, node.restarts, node.max_restarts) for node in nodes] == [("0-1", 0, 3), ("2-3", 1, 3)]
    assert now.restarts is not None
    assert (now.restarts.count, now.restarts.limit, now.restarts.host) == (1, 3, "host-1")
    assert not now.restarts.everywhere
    assert (now.state, now.live) == ("forming", True)


def test_a_status_of_1280_nodes_stays_small(etcd: EtcdServer, namespace: str) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(1, range(1280))
        await rendezvous.unregister(40, *range(700, 704))
        await rendezvous.register(*range(2000, 2050))

    found = _rendezvous(_look(etcd, namespace, story, limits=(1, 1280))[0])
    assert (found.lost, found.lost_count, found.size) == ("40,700-703", 5, 1280)
    assert [node.group_rank for node in found.nodes] == [*range(7), 40, *range(700, 704)]
    assert (found.nodes_more, len(found.asking), found.asking_more) == (1268, 12, 38)
    assert len(json.dumps(found.to_json())) < 5_000


def test_records_that_cannot_be_read_are_passed_over(etcd: EtcdServer, namespace: str) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        keys = rendezvous.keys
        for key in (f"{keys.nodes}n1", keys.closed, keys.gone_of("n2"), keys.refused("n3"), f"{keys.root}other/x"):
            await rendezvous.client.put(key, "\x00 no record")
        await rendezvous.client.put(keys.round, '{"format": 2}')

    now, _ = _look(etcd, namespace, story)
    found = _rendezvous(now)
    assert (now.state, found.readable, found.round, found.nodes) == ("stopped", False, 0, ())


def test_what_a_run_without_workers_is_told_is_refused(etcd: EtcdServer, namespace: str) -> None:
    """A command to it would wait for ever: nobody has joined."""

    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(1, range(2))
        with pytest.raises(NotRunning, match="no worker has ever joined it"):
            await send(rendezvous.client, Keys(namespace, RUN), "pause")

    now, _ = _look(etcd, namespace, story)
    assert now.state == "running"
    assert now.commands == ()
