"""The process beside torchrun's agent: what it does when that is killed, and what it never does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from chaos.harness.processes import children, runs
from guarded_agent import GuardedAgent, context, guarded_agents, until
from torch.distributed.elastic.rendezvous import RendezvousParameters

from async_support import run
from instep.etcd import Client, KeyValue
from instep.rendezvous.keys import RendezvousKeys
from instep.rendezvous.records import Departure
from instep.settings import resolve
from instep.testing import EtcdServer
from instep.torch._rendezvous.guard import Guard
from instep.torch._rendezvous.handler import create_handler

RUN = "guard-run"
TTL_S = 30
SOON_S = 10.0
"""Far below the lease. It takes half a second where a core is free for it."""
LIMIT_S = 30.0
OPTIONS: Mapping[str, str] = {
    "join_timeout": "60",
    "last_call_timeout": "0.2",
    "keep_alive_interval": "10",
    "keep_alive_max_attempt": "3",
}


class Scene:
    """One run in one namespace."""

    def __init__(self, endpoint: str, namespace: str) -> None:
        self.endpoint = endpoint
        self.keys = RendezvousKeys(namespace, RUN)

    def params(self, nodes: int) -> RendezvousParameters:
        conf = {**OPTIONS, "namespace": self.keys.namespace}
        return RendezvousParameters("etcd3", self.endpoint, RUN, nodes, nodes, local_addr="127.0.0.1", **conf)

    def elastic(self) -> RendezvousParameters:
        conf = {**OPTIONS, "namespace": self.keys.namespace}
        return RendezvousParameters("etcd3", self.endpoint, RUN, 1, 2, local_addr="127.0.0.1", **conf)

    def under(self, prefix: str) -> tuple[KeyValue, ...]:
        async def main() -> tuple[KeyValue, ...]:
            async with Client([self.endpoint]) as client:
                return (await client.range(prefix)).kvs

        return run(main())

    def departures(self) -> dict[str, str]:
        """Who has gone, and who says so."""
        return {item.key.removeprefix(self.keys.gone): _by(item) for item in self.under(self.keys.gone)}


def _by(item: KeyValue) -> str:
    departure = Departure.decode_or_none(item.value)
    return departure.by if departure is not None else "unreadable"


@pytest.fixture
def scene(etcd: EtcdServer, namespace: str) -> Scene:
    return Scene(etcd.endpoint, namespace)


def joined(agent: GuardedAgent) -> int:
    """The process id of its guard, which has begun to watch."""
    agent.says("join")
    guard = agent.guard()
    assert guard is not None
    until(lambda: _ignores_signals(guard))  # just before it begins to watch
    return guard


def _ignores_signals(pid: int) -> bool:
    ignored = Path(f"/proc/{pid}/status").read_text().partition("\nSigIgn:\t")[2].partition("\n")[0]
    return bool(int(ignored, 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize("case", ["as usual", "a child has inherited the pipe", "a Python without pidfd_open"])
def test_a_killed_agent_is_gone_long_before_its_lease_ends(scene: Scene, case: str) -> None:
    with guarded_agents(scene.params(1), conda=case.startswith("a Python")) as (agent,):
        guard = joined(agent)
        (registration,) = scene.under(scene.keys.nodes)
        heir = agent.says("heir") if case.startswith("a child") else None
        killed = agent.kill()
        until(lambda: not scene.under(scene.keys.nodes), SOON_S)
        print(f"{case}: {time.monotonic() - killed:.2f} s")
        assert scene.departures() == {registration.key.removeprefix(scene.keys.nodes): "guard"}
        until(lambda: not scene.under(scene.keys.election), SOON_S)
        until(lambda: not runs(guard), SOON_S)
        if heir is not None:
            os.kill(heir, signal.SIGKILL)


def test_the_others_form_the_next_round_at_once_when_the_one_that_coordinates_is_killed(scene: Scene) -> None:
    with guarded_agents(scene.elastic(), scene.elastic()) as (one, other):
        one.says("join")
        other.is_told("join")
        until(lambda: bool(one.says("waiting")))
        assert one.says("join") == (0, 2)
        assert other.answer() == (1, 2)
        killed = one.kill()
        until(lambda: bool(other.says("waiting")), SOON_S)
        assert other.says("join") == (0, 1)
        print(f"{time.monotonic() - killed:.2f} s")
        assert scene.departures() == {}


def test_an_orderly_end_leaves_no_guard_and_no_zombie(scene: Scene) -> None:
    with guarded_agents(scene.params(1)) as (agent,):
        guard = joined(agent)
        assert agent.says("end") == []
        assert not runs(guard)
        assert not scene.departures(), "of a run that was closed nobody needs them"


def test_a_guard_that_is_dismissed_ends_by_itself(scene: Scene) -> None:
    guard = Guard(resolve(scene.endpoint), scene.keys, "node", TTL_S)
    (pid,) = [child for child in children(os.getpid()) if f"Guard({child} of node)" == repr(guard)]
    until(lambda: _ignores_signals(pid))
    assert guard.dismiss()
    assert scene.departures() == {}


def test_a_guard_takes_little_memory_and_shows_nothing_on_its_command_line(scene: Scene) -> None:
    with guarded_agents(scene.params(1)) as (agent,):
        guard = joined(agent)
        assert _own_kb(guard) < 8 * 1024
        assert b"python" in (line := Path(f"/proc/{guard}/cmdline").read_bytes())
        assert scene.keys.namespace.encode() not in line
        assert scene.endpoint.rpartition("/")[2].encode() not in line


def _own_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_a_guard_has_a_session_of_its_own_and_leaves_signals_to_the_agent(scene: Scene) -> None:
    with guarded_agents(scene.params(1)) as (agent,):
        guard = joined(agent)
        assert os.getsid(guard) == guard
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guard, number)
        agent.kill()
        until(lambda: not scene.under(scene.keys.nodes), SOON_S)


def test_a_guard_does_not_hold_what_the_agent_prints_to(scene: Scene) -> None:
    reader, writer = context.Pipe(duplex=False)
    with guarded_agents(scene.params(1), stdout=writer) as (agent,):
        writer.close()
        guard = joined(agent)
        os.kill(guard, signal.SIGSTOP)
        try:
            agent.kill()
            assert _has_ended(reader), "the guard keeps the pipe open"
            assert runs(guard)
        finally:
            os.kill(guard, signal.SIGCONT)
    reader.close()


def _has_ended(reader: Connection) -> bool:
    while reader.poll(LIMIT_S):
        if not os.read(reader.fileno(), 4096):
            return True
    return False


def test_a_guard_tells_etcd_when_that_is_within_reach_again(etcd_server: EtcdServer, namespace: str) -> None:
    scene = Scene(etcd_server.endpoint, namespace)
    with guarded_agents(scene.params(1)) as (agent,):
        joined(agent)
        etcd_server.pause()
        try:
            agent.kill()
            time.sleep(4.0)  # the length of the fault: longer than a call of the guard's
        finally:
            etcd_server.resume()
        until(lambda: not scene.under(scene.keys.nodes), SOON_S)
        assert list(scene.departures().values()) == ["guard"]


def test_an_agent_whose_guard_cannot_be_started_says_so_once_and_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    handler = create_handler(scene.params(1))
    try:
        assert handler.next_rendezvous().world_size == 1
        assert handler.next_rendezvous().world_size == 1
    finally:
        handler.shutdown()
    told = [record.getMessage() for record in caplog.records if "guard" in record.getMessage()]
    assert len(told) == 1
    assert "30 s" in told[0]
