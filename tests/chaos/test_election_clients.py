"""The clients of chaos that campaign: cut off, a leader stops leading before the next one leads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from chaos.checks.verdicts import without_excused
from chaos.election_clients import ElectionClient
from chaos.fault_plan import TTL_S
from chaos.harness.link import Link
from chaos.harness.tasks import Background, until
from chaos.timed_calls import TimedCalls

from instep.etcd import Client
from instep.etcd._lease import LeaseTiming
from instep.recipes import Session
from instep.testing import EtcdServer
from instep.testing.checkers import History, Hold, Verdict, check_exclusion

CLIENTS = 2
TIMEOUT_S = 30.0


async def cut_the_holder_off(endpoint: str, path: Path) -> Verdict:
    """Waits until another one has led for a moment, then ends everything."""
    history, calls = History(path), TimedCalls()
    links = [Link([endpoint]) for _ in range(CLIENTS)]
    clients = [Client(link.endpoints, timeout_s=5.0) for link in links]
    election_clients = [
        ElectionClient(f"client-{number}", client, "/t/", history, calls, seed=number)
        for number, client in enumerate(clients)
    ]
    try:
        async with Background([client.run() for client in election_clients]):
            assert await until(lambda: any(item.leads for item in election_clients), TIMEOUT_S)
            holder = next(number for number, item in enumerate(election_clients) if item.leads)
            links[holder].cut_off()
            other, before = election_clients[1 - holder].name, len(history.select(Hold))

            def has_had_it() -> bool:
                return any(hold.holder == other for hold in history.select(Hold)[before:])

            assert await until(has_had_it, TIMEOUT_S)
    finally:
        for client in clients:
            await client.close()
        for link in links:
            link.close()
        history.close()
    return check_exclusion(without_excused(history.select(Hold), [], TTL_S))


def test_a_leader_that_is_cut_off_stops_leading_in_time(tmp_path: Path) -> None:
    with EtcdServer() as server:
        verdict = asyncio.run(cut_the_holder_off(server.endpoint, tmp_path / "calls"))
    assert verdict.passed, str(verdict)


def test_a_leader_that_continues_without_a_lease_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeaseTiming, "valid_until", lambda self, sent_at: sent_at + 10 * self.ttl_s)
    monkeypatch.setattr(Session, "link", "connected")
    with EtcdServer() as server:
        verdict = asyncio.run(cut_the_holder_off(server.endpoint, tmp_path / "calls"))
    assert "believed at once" in str(verdict)
