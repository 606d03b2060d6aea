"""What `instep status` and `instep runs` print of torchrun's agents that meet on etcd."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from command import environment, instep
from rendezvous_in_etcd import RendezvousInEtcd
from run_in_etcd import RunInEtcd, incarnation_of, with_client

from instep.cli._output import facts_console, plain
from instep.cli._page import status_page
from instep.control import Keys, RestartsReport, RunStatus, status
from instep.etcd import Client
from instep.protocol.records import Elastic
from instep.rendezvous.records import Departure
from instep.testing import EtcdServer

Story = Callable[[RendezvousInEtcd], Awaitable[None]]


def _status(etcd: EtcdServer, namespace: str, story: Story, *, limits: tuple[int, int] = (2, 3)) -> RunStatus:
    async def work(client: Client) -> RunStatus:
        await story(RendezvousInEtcd(client, namespace, "gpt-a", limits=limits))
        return await status(client, Keys(namespace, "gpt-a"))

    return with_client(etcd, work)


def _page(now: RunStatus) -> list[str]:
    return plain(facts_console(), status_page(now).whole()).splitlines()


async def _joined(rendezvous: RendezvousInEtcd) -> None:
    await rendezvous.form(3, range(2), cause="failure", restarts=1)
    await rendezvous.register(7)
    run = RunInEtcd(rendezvous.client, Keys(rendezvous.keys.namespace, "gpt-a"))
    await run.join()
    await run.die()
    for rank in range(4):
        elastic = Elastic(restarts=1, max_restarts=3, group_rank=rank // 2)
        await run.register(rank, incarnation_of(20_000 + rank), f"node-{rank // 2}", elastic)


def test_the_commands_show_a_run_that_only_torchrun_knows(etcd: EtcdServer, namespace: str) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(3, range(2), cause="membership")

    _status(etcd, namespace, story)
    env = environment(etcd.environment(), INSTEP_NAMESPACE=namespace)
    ended = instep("status", "gpt-a", env=env)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "gpt-a  running",
        "torchrun  round 3, 2 nodes of 2:3, formed because nodes came or went",
        *(line for line in ended.out.splitlines() if line.startswith("etcd  ")),
        "",
        "nodes of round 3",
        "  0  host-0, pid 100",
        "  1  host-1, pid 101",
    ]
    listed = instep("runs", env=env).out.splitlines()
    assert [line.split() for line in listed] == [
        ["run", "state", "ranks", "step", "view", "leader", "torchrun"],
        ["gpt-a", "running", "round", "3,", "2", "nodes"],
    ]
    document = instep("status", "gpt-a", "--json", env=env).json
    assert document["restarts"] is None
    assert document["rendezvous"]["nodes"][1] == {
        "group_rank": 1,
        "node": "n1",
        "host": "host-1",
        "pid": 101,
        "state": "running",
        "ranks": None,
        "restarts": None,
        "max_restarts": None,
    }


def test_a_run_whose_workers_have_joined_shows_ranks_and_restarts_of_each_node(
    etcd: EtcdServer, namespace: str
) -> None:
    page = _page(_status(etcd, namespace, _joined))
    for line in (
        "ranks     0-3 alive",
        "torchrun  round 3, 2 nodes of 2:3, formed after a failure, 1 restart after failures",
        "waiting   1 node, host-7 (pid 107)",
        "restart   1 of 3 (torchrun)",
        "  0  host-0, pid 100  rank 0-1  restart 1 of 3",
        "  1  host-1, pid 101  rank 2-3  restart 1 of 3",
    ):
        assert line in page


@pytest.mark.parametrize(
    ("restarts", "line"),
    [
        (RestartsReport(0, 3, "host-a", everywhere=True), "restart   0 of 3 (torchrun)"),
        (RestartsReport(2, 3, "host-a", everywhere=False), "restart   2 of 3 on host-a (torchrun)"),
        (RestartsReport(3, 3, "host-a", everywhere=True), "restart   3 of 3 (torchrun): the next failure ends it"),
        (RestartsReport(0, 0, "host-a", everywhere=True), None),
    ],
)
def test_the_restarts_that_are_left_are_one_line(
    etcd: EtcdServer, namespace: str, restarts: RestartsReport, line: str | None
) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(1, range(2))

    page = _page(replace(_status(etcd, namespace, story), restarts=restarts))
    assert [text for text in page if text.startswith("restart")] == ([] if line is None else [line])


async def _first_of_two(rendezvous: RendezvousInEtcd) -> None:
    await rendezvous.register(0)


async def _enough(rendezvous: RendezvousInEtcd) -> None:
    await rendezvous.register(0, 1)


async def _anew(rendezvous: RendezvousInEtcd) -> None:
    await rendezvous.form(4, range(2), wanted=True)
    await rendezvous.depart(1, Departure())


async def _full(rendezvous: RendezvousInEtcd) -> None:
    await rendezvous.form(1, range(3))
    await rendezvous.register(3, 4, 5, 6, 7)


async def _closed(rendezvous: RendezvousInEtcd) -> None:
    await rendezvous.form(2, range(2), restarts=1)
    await rendezvous.unregister(0, 1)
    await rendezvous.close(1, "host-\x1b[2J0")


async def _abandoned(rendezvous: RendezvousInEtcd) -> None:
    await rendezvous.form(2, range(2))
    await rendezvous.unregister(0, 1)


@pytest.mark.parametrize(
    ("story", "lines"),
    [
        (
            _first_of_two,
            [
                "torchrun  round 1 is being formed: 1 node of 2:3 is there, 1 more needed",
                "waiting   1 node, host-0 (pid 100)",
            ],
        ),
        (_enough, ["torchrun  round 1 is being formed: 2 nodes of 2:3 are there, more may still come"]),
        (
            _anew,
            [
                "torchrun  round 4, 2 nodes of 2:3, is being replaced: 1 more node needed",
                "absent    1 node of the round, group rank 1",
                "  1  host-1, pid 101  left",
            ],
        ),
        (
            _full,
            [
                "torchrun  round 1, 3 nodes of 2:3",
                "waiting   5 nodes, host-3 (pid 103), host-4 (pid 104), host-5 (pid 105) and 2 more: "
                "5 spares, the round is full",
            ],
        ),
        (_closed, ["gpt-a  closed", "torchrun  closed by host-\\x1b[2J0 after round 2, 1 restart after failures"]),
        (
            _abandoned,
            [
                "gpt-a  stopped",
                "torchrun  no node is present, and round 2 was not closed",
                "  0  host-0, pid 100  lost",
            ],
        ),
    ],
)
def test_each_state_of_a_rendezvous_is_told_in_a_sentence(
    etcd: EtcdServer, namespace: str, story: Story, lines: list[str]
) -> None:
    page = _page(_status(etcd, namespace, story))
    assert [line for line in lines if line not in page] == []


def test_a_thousand_nodes_take_a_dozen_lines_at_most(etcd: EtcdServer, namespace: str) -> None:
    async def story(rendezvous: RendezvousInEtcd) -> None:
        await rendezvous.form(1, range(1000), wanted=True)
        await rendezvous.unregister(40, *range(700, 704))
        await rendezvous.register(*range(2000, 2050))
        await rendezvous.refuse(5000, "the run has --nnodes=1:1100 and this node --nnodes=2")

    now = replace(
        _status(etcd, namespace, story, limits=(1, 1100)), restarts=RestartsReport(1, 3, "host-9", everywhere=False)
    )
    page = [line for line in _page(now)[1:] if line and not line.startswith("etcd")]
    assert len(page) <= 12
    assert "absent    5 nodes of the round, group rank 40,700-703" in page
    assert "   40  host-40, pid 140    lost" in page
    assert page[-1].strip() == "and 995 more nodes"


def test_a_table_whose_last_column_is_empty_keeps_its_values_whole(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> RunStatus:
        await RunInEtcd(client, Keys(namespace, "gpt-a")).join()
        return await status(client, Keys(namespace, "gpt-a"))

    now = with_client(etcd, work)
    lr = tuple(value for value in now.values if value.name == "lr")
    assert "  lr  3e-4" in _page(replace(now, values=lr))
