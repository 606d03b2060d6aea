"""Nodes that leave a rendezvous, or stop answering in it: frozen hosts, late nodes, finished ones."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest
from ported_agents import Agents, together, until
from torch.distributed import (  # type: ignore[attr-defined]  # re-exported, but not by name
    DistError,
    TCPStore,
)
from torch.distributed.elastic.agent.server.api import _TERMINAL_STATE_SYNC_ID
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousTimeoutError
from torch.distributed.elastic.utils.store import barrier

from instep.rendezvous.records import Address, Closed
from instep.testing import EtcdServer
from instep.torch._rendezvous import handler as rendezvous_handler
from instep.torch._rendezvous.address import address_of_this_node
from instep.torch._rendezvous.round_store import AgentsStore, await_all_nodes, connect_store, open_store

pytestmark = pytest.mark.torch

HOST = "127.0.0.1"
SHORT_S = 0.3
LIMIT_S = 10.0


# -- a host that is frozen: it answers nothing, and its kernel keeps the connections ----------------------------------


def _serve(line: Connection) -> None:
    store = open_store(HOST, 60.0)
    line.send(store.port)
    line.recv()


@pytest.fixture
def frozen_host() -> Iterator[Callable[[], tuple[Address, TCPStore]]]:
    """Freezes the host of a store, and gives the store's address and a client that had reached it before."""
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("forkserver").Process(target=_serve, args=(theirs,))
    process.start()
    address = Address(host=HOST, port=ours.recv())
    assert process.pid is not None

    def freeze() -> tuple[Address, TCPStore]:
        client = connect_store(address, LIMIT_S, 60.0)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        return address, client

    yield freeze
    process.kill()
    process.join()


FrozenHost = Callable[[], tuple[Address, TCPStore]]


def test_who_meets_at_a_frozen_host_gives_up_in_time(frozen_host: FrozenHost) -> None:
    _, client = frozen_host()
    began = time.monotonic()
    assert not await_all_nodes(
        AgentsStore(client, 1, 2, timeout_s=SHORT_S), 2, is_over=lambda: False, timeout_s=SHORT_S
    )
    assert time.monotonic() - began < LIMIT_S


def test_who_connects_to_a_frozen_host_gives_up_in_time(frozen_host: FrozenHost) -> None:
    address, _ = frozen_host()
    began = time.monotonic()
    with pytest.raises(DistError):
        connect_store(address, SHORT_S, 60.0)
    assert time.monotonic() - began < LIMIT_S


def test_who_waits_for_ranks_from_a_frozen_host_goes_on_in_time(frozen_host: FrozenHost) -> None:
    _, client = frozen_host()
    store = AgentsStore(client, 1, 2, timeout_s=SHORT_S)
    began = time.monotonic()
    store.set("torchelastic/role_info/1", b'{"local_world_size": 1}')
    store.get("torchelastic/assigned_ranks/1")
    assert store.is_lost
    assert time.monotonic() - began < LIMIT_S


def test_who_has_finished_does_not_wait_for_a_frozen_host_for_ever(frozen_host: FrozenHost) -> None:
    """torchrun's exit barrier begins with an `add`, which has no limit of its own."""
    _, client = frozen_host()
    began = time.monotonic()
    with pytest.raises(DistError):
        AgentsStore(client, 1, 2, timeout_s=SHORT_S).add("torchelastic/agent/terminal_state/num_members", 1)
    assert time.monotonic() - began < LIMIT_S


# -- whose end is the run's end ----------------------------------------------------------------------------------------


@pytest.fixture
def agents(etcd: EtcdServer, namespace: str) -> Iterator[Agents]:
    made = Agents(etcd.endpoint, namespace)
    yield made
    made.end()


def closed(agents: Agents) -> Closed | None:
    found = agents._look(lambda client: client.get(agents.keys.closed))
    return Closed.decode(found.value) if found is not None else None


def test_a_node_that_does_not_get_back_in_time_leaves_the_run_to_the_others(agents: Agents) -> None:
    """torchrun shuts the handler of each agent down that ends; the other trains on."""
    (staying, failing), _ = agents.in_a_round(2, 1, 2, join_timeout="8")
    with pytest.raises(RendezvousTimeoutError):
        failing.joins().result(LIMIT_S)
    assert failing.handler.shutdown()
    assert closed(agents) is None
    assert not staying.handler.is_closed()


def test_a_node_that_is_interrupted_leaves_the_run_to_the_others(agents: Agents) -> None:
    """Before the first workers start torchrun catches no signals: SIGINT is Python's KeyboardInterrupt then."""
    (_, interrupted), _ = agents.in_a_round(2, 1, 2)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert interrupted.handler.shutdown()
    assert closed(agents) is None


def test_a_node_whose_workers_have_failed_too_often_ends_the_run_though_it_once_came_too_late(agents: Agents) -> None:
    (staying, failing), _ = agents.in_a_round(2, 1, 2, join_timeout="8")
    with pytest.raises(RendezvousTimeoutError):
        failing.joins().result(LIMIT_S)
    again = [staying.joins(), failing.joins()]
    assert [joining.result(LIMIT_S).world_size for joining in again] == [2, 2]
    assert failing.handler.shutdown()
    assert closed(agents) is not None


# -- under which address a node is known -------------------------------------------------------------------------------


def test_a_first_endpoint_without_an_address_does_not_make_a_node_known_as_loopback() -> None:
    """A member that is away for good, or whose name does not resolve just now."""
    elsewhere = "http://192.0.2.1:2379"
    assert address_of_this_node("http://gone.invalid:2379", elsewhere) == address_of_this_node(elsewhere)


# -- the end of the training -------------------------------------------------------------------------------------------


def test_workers_are_not_restarted_for_a_newcomer_once_those_of_another_node_have_finished(agents: Agents) -> None:
    """That node waits in torchrun's exit barrier and would not come to another round: the rest would wait for it."""
    (finished, saving), (info, _) = agents.in_a_round(2, 1, 3)
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(barrier, info.store, 2, _TERMINAL_STATE_SYNC_ID, LIMIT_S)
        newcomer = agents.one(1, 3).joins()
        node, store = saving.handler.node, saving.handler._agents
        assert node is not None
        assert store is not None
        until(lambda: node.is_left_behind and store.check([f"{_TERMINAL_STATE_SYNC_ID}/num_members"]))
        assert saving.handler.num_nodes_waiting() == 0
        barrier(store, 2, _TERMINAL_STATE_SYNC_ID, LIMIT_S)
        waits.result(LIMIT_S)
    assert finished.handler.shutdown()
    with pytest.raises(RendezvousClosedError):
        newcomer.result(LIMIT_S)


# -- a node that the others' store cannot be reached from --------------------------------------------------------------


def test_a_node_that_never_reaches_the_others_gives_up_and_they_train_on(
    agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its attempts stops the workers of all, and the others would wait with it until their join_timeout."""
    (first, second), _ = agents.in_a_round(2, 2, 3)
    reached = rendezvous_handler.connect_store

    def reach(address: Address, connect_s: float, read_s: float) -> TCPStore:
        if threading.current_thread() is stranger:
            raise DistError("no route to host")
        return reached(address, connect_s, read_s)

    monkeypatch.setattr(rendezvous_handler, "ARRIVAL_S", 0.0)
    monkeypatch.setattr(rendezvous_handler, "connect_store", reach)
    newcomer = agents.one(2, 3)
    said: list[BaseException] = []

    def join() -> None:
        try:
            newcomer.handler.next_rendezvous()
        except RendezvousTimeoutError as error:
            said.append(error)
        newcomer.handler.shutdown()

    stranger = threading.Thread(target=join)
    stranger.start()
    while stranger.is_alive():
        if first.handler.num_nodes_waiting() or second.handler.num_nodes_waiting():
            together(first, second)
    (error,) = said
    assert "cannot reach the store of group rank 0" in str(error)
    until(lambda: not first.handler.num_nodes_waiting() or bool(together(first, second)))
    assert not first.handler.is_closed()


def test_all_nodes_of_a_round_are_told_to_leave_it_in_the_same_moment(agents: Agents) -> None:
    """So that no worker misses another's and fails before its own torchrun has heard: that would count as a restart."""
    (first, second), _ = agents.in_a_round(2, 2, 3)
    newcomer = agents.one(2, 3).joins()
    for agent in (first, second):
        node = agent.handler.node
        assert node is not None
        until(lambda: agent.handler.num_nodes_waiting() == 1)  # noqa: B023  # called at once
        assert time.monotonic() >= node.left_behind_at + rendezvous_handler.TOGETHER_S
    assert {info.world_size for info in together(first, second)} == {3}
    newcomer.result(LIMIT_S)
