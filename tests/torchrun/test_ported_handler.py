"""PyTorch's tests of the handler that torchrun holds, on real handlers and a real etcd."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ported_agents import LIMIT_S, RUN, Agents, bootstrap_of, parameters, together, until
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
    registry,
    rendezvous_handler_registry,
)

from instep.testing import EtcdServer, Proxy

ROOT = Path(__file__).parents[2]


@pytest.fixture
def agents(etcd: EtcdServer, namespace: str) -> Iterator[Agents]:
    made = Agents(etcd.endpoint, namespace)
    yield made
    made.end()


# -- joining -----------------------------------------------------------------------------------------------------------


def test_all_nodes_get_a_rank_of_their_own_and_one_store(agents: Agents) -> None:
    _, given = agents.in_a_round(3, 3, 3)
    assert [info.rank for info in given] == [0, 1, 2]
    assert {info.world_size for info in given} == {3}
    given[0].store.set("from rank 0", "x")
    assert [info.store.get("from rank 0") for info in given] == [b"x"] * 3
    formed = agents.round()
    assert formed is not None
    assert len({seat.node for seat in formed.seats}) == 3, "nodes of one process on one host are told apart"
    assert {seat.pid for seat in formed.seats} == {os.getpid()}


def test_the_least_number_is_enough_once_the_last_call_is_over(agents: Agents) -> None:
    began = time.monotonic()
    _, given = agents.in_a_round(2, 2, 3, last_call_timeout="0.5")
    assert {info.world_size for info in given} == {2}
    assert time.monotonic() - began >= 0.5


def test_the_most_need_no_last_call(agents: Agents) -> None:
    began = time.monotonic()
    _, given = agents.in_a_round(2, 1, 2, last_call_timeout="30")
    assert {info.world_size for info in given} == {2}
    assert time.monotonic() - began < 15


def test_each_joining_leads_to_a_further_round_with_a_store_of_its_own(agents: Agents) -> None:
    agent = agents.one(1, 1)
    for number in (1, 2, 3, 4):
        (info,) = together(agent)
        formed = agents.round()
        assert formed is not None
        assert (formed.number, info.rank, info.world_size) == (number, 0, 1)
        assert not info.store.check(["left by the last round"])
        info.store.set("left by the last round", "x")


def test_who_does_not_get_the_others_in_time_is_told_so_and_leaves_nothing(agents: Agents) -> None:
    agent = agents.one(2, 2, join_timeout="0.5")
    with pytest.raises(RendezvousTimeoutError, match="not complete in time: start the other nodes"):
        agent.joins().result(LIMIT_S)
    assert agents.registered() == []
    assert agents.round() is None


# -- a round that is complete ------------------------------------------------------------------------------------------


def test_a_newcomer_is_counted_and_joins_in_the_next_round(agents: Agents) -> None:
    (agent,), _ = agents.in_a_round(1, 1, 2)
    assert agent.handler.num_nodes_waiting() == 0
    newcomer = agents.one(1, 2)
    coming = newcomer.joins()
    until(lambda: agent.handler.num_nodes_waiting() > 0)
    again, first = agent.joins().result(LIMIT_S), coming.result(LIMIT_S)
    assert (again.rank, first.rank) == (0, 1)
    assert agent.handler.num_nodes_waiting() == newcomer.handler.num_nodes_waiting() == 0


def test_a_newcomer_whom_nobody_lets_in_is_told_so_and_leaves_nothing(agents: Agents) -> None:
    (agent,), _ = agents.in_a_round(1, 1, 2)
    coming = agents.one(1, 2, join_timeout="0.5").joins()
    with pytest.raises(RendezvousTimeoutError):
        coming.result(LIMIT_S)
    until(lambda: agent.handler.num_nodes_waiting() == 0)
    assert agents.asking() == 0


def test_a_node_too_many_waits_without_limit_and_disturbs_nobody(agents: Agents) -> None:
    """Neither join_timeout nor its lease's length, of 2 s, bounds that. At the end it leaves with exit code 0: it was
    not needed."""
    (agent,), _ = agents.in_a_round(1, 1, 1)
    spare = agents.one(1, 1, join_timeout="2").joins()
    until(lambda: agents.asking() == 1)
    with pytest.raises(TimeoutError):
        spare.result(2.5)
    assert agents.asking() == 1
    assert agent.handler.num_nodes_waiting() == 0
    assert agent.handler.shutdown()
    with pytest.raises(RendezvousClosedError) as end:
        spare.result(LIMIT_S)
    assert isinstance(end.value, SystemExit)
    assert end.value.code == 0


def test_a_node_too_many_takes_the_place_of_one_that_is_heard_of_no_more(agents: Agents, etcd: EtcdServer) -> None:
    with Proxy("127.0.0.1", etcd.port) as way:
        first, second = agents.one(1, 2), agents.one(1, 2, endpoint=way.endpoint)
        assert [info.world_size for info in together(first, second)] == [2, 2]
        spare = agents.one(1, 2).joins()
        until(lambda: agents.asking() == 1)
        assert first.handler.num_nodes_waiting() == 0
        way.cut()
        until(lambda: first.handler.num_nodes_waiting() > 0)
        assert {info.rank for info in (first.joins().result(LIMIT_S), spare.result(LIMIT_S))} == {0, 1}
        assert second.handler.num_nodes_waiting() == 0, "for all it knows its round goes on"
        way.heal()
        until(lambda: second.handler.num_nodes_waiting() > 0)
        agents.end()


# -- the end -----------------------------------------------------------------------------------------------------------


def test_closing_is_heard_of_by_all_and_may_be_repeated(agents: Agents) -> None:
    made, _ = agents.in_a_round(2, 2, 2)
    assert [agent.handler.is_closed() for agent in made] == [False, False]
    made[0].handler.set_closed()
    made[0].handler.set_closed()
    until(lambda: all(agent.handler.is_closed() for agent in made))
    for agent in made:
        with pytest.raises(RendezvousClosedError, match="has ended"):
            agent.joins().result(LIMIT_S)


def test_who_waits_while_the_run_is_closed_is_told_so(agents: Agents) -> None:
    made, _ = agents.in_a_round(2, 2, 2)
    waiting = made[1].joins()
    until(lambda: agents.asking() == 1)
    made[0].handler.set_closed()
    with pytest.raises(RendezvousClosedError, match="has ended"):
        waiting.result(LIMIT_S)


def test_shutting_down_closes_and_ends_the_thread_and_may_be_repeated(agents: Agents) -> None:
    name = f"instep-rendezvous-{RUN}"
    made, _ = agents.in_a_round(2, 2, 2)
    threads = [thread for thread in threading.enumerate() if thread.name == name]
    assert len(threads) == 2
    assert made[0].handler.shutdown()
    until(made[1].handler.is_closed)
    assert made[1].handler.shutdown()
    assert made[0].handler.shutdown()
    assert not any(thread.is_alive() for thread in threads)


def test_an_agent_that_a_signal_ends_leaves_the_run_to_the_others(agents: Agents) -> None:
    """torch 2.6 shuts its handler down then too (pytorch #150916), later ones do not."""
    made, _ = agents.in_a_round(2, 1, 2)
    try:
        raise SignalException("told to end", sigval=signal.SIGTERM)
    except SignalException:
        assert made[0].handler.shutdown()
    until(lambda: made[1].handler.num_nodes_waiting() > 0)
    assert not made[1].handler.is_closed()
    assert made[1].joins().result(LIMIT_S).world_size == 1


def test_without_etcd_a_round_goes_on_and_closing_says_that_it_could_not(etcd_server: EtcdServer) -> None:
    agents = Agents(etcd_server.endpoint, "/ported")
    (agent,), _ = agents.in_a_round(1, 1, 1, close_timeout="0.3")
    etcd_server.kill()
    assert agent.handler.num_nodes_waiting() == 0
    assert not agent.handler.is_closed()
    with pytest.raises(RendezvousConnectionError, match=r"was not written to etcd within 0\.3 s"):
        agent.handler.set_closed()
    assert agent.handler.shutdown() is False


# -- what it is made of ------------------------------------------------------------------------------------------------


def test_a_handler_says_what_it_is_before_it_asks_anybody() -> None:
    agents = Agents(f"127.0.0.1:{a_port_of_nobody()}", "/ported")
    handler = agents.one(1, 1).handler
    assert (handler.get_backend(), handler.get_run_id()) == ("etcd3", RUN)
    assert not handler.is_closed()
    assert handler.num_nodes_waiting() == 0


def test_where_there_is_no_etcd_joining_says_so() -> None:
    agents = Agents(f"127.0.0.1:{a_port_of_nobody()}", "/ported")
    with pytest.raises(RendezvousConnectionError):
        agents.one(1, 1, connect_timeout="0.2").joins().result(LIMIT_S)
    agents.end()


def test_the_workers_meet_in_the_store_of_the_agents(agents: Agents) -> None:
    made, given = agents.in_a_round(2, 2, 2, local_addr="127.0.0.2")
    assert all(agent.handler.use_agent_store for agent in made)
    formed = agents.round()
    assert formed is not None
    assert formed.store is not None
    assert {bootstrap_of(info) for info in given} == {("127.0.0.2", formed.store.port)}


def test_the_workers_meet_elsewhere_where_that_is_asked_for(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    made, given = agents.in_a_round(2, 2, 2, local_addr="127.0.0.2")
    assert not any(agent.handler.use_agent_store for agent in made)
    formed = agents.round()
    assert formed is not None
    assert formed.store is not None
    ((host, port),) = {bootstrap_of(info) for info in given}
    assert host == "127.0.0.2"
    assert port != formed.store.port


def test_torch_finds_the_backend_by_the_entry_point_that_the_project_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Instep is not installed: what its installation would put there is put there here."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["torchrun.handlers"]
    metadata = tmp_path / "instep-0.dist-info"
    metadata.mkdir()
    lines = ["[torchrun.handlers]", *(f"{name} = {target}" for name, target in declared.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: instep\nVersion: 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(rendezvous_handler_registry, "_registry", {})
    with pytest.raises(ValueError, match="not registered"):
        registry.get_rendezvous_handler(parameters("localhost:2379", "/ported", 1, 1))
    registry._register_out_of_tree_handlers()
    registry._register_out_of_tree_handlers()
    assert registry.get_rendezvous_handler(parameters("localhost:2379", "/ported", 1, 1)).get_backend() == "etcd3"


def a_port_of_nobody() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
