"""The clients of chaos that campaign: cut off, a leader stops leading before the next one leads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from chaos.bystanders import Bystander
from chaos.clocked import Calls
from chaos.faults import TTL_S
from chaos.nodes import Link
from chaos.overlaps import without_excused
from chaos.tasks import Background, until

from instep.coordination import Session
from instep.etcd import Client
from instep.etcd._lease import LeaseTiming
from instep.testing import EtcdServer
from instep.testing.checkers import History, Hold, Verdict, check_exclusion

BYSTANDERS = 2
TIMEOUT_S = 30.0


async def cut_the_holder_off(endpoint: str, path: Path) -> Verdict:
    """Until another one has led for a moment; then everything ends."""
    history, calls = History(path), Calls()
    links = [Link([endpoint]) for _ in range(BYSTANDERS)]
    clients = [Client(link.endpoints, timeout_s=5.0) for link in links]
    bystanders = [
        Bystander(f"bystander-{number}", client, "/t/", history, calls, seed=number)
        for number, client in enumerate(clients)
    ]
    try:
        async with Background([bystander.run() for bystander in bystanders]):
            assert await until(lambda: any(item.leads for item in bystanders), TIMEOUT_S)
            holder = next(number for number, item in enumerate(bystanders) if item.leads)
            links[holder].cut_off()
            other, before = bystanders[1 - holder].name, len(history.select(Hold))

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


def test_a_leader_that_leads_on_without_a_lease_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LeaseTiming, "valid_until", lambda self, sent_at: sent_at + 10 * self.ttl_s)
    monkeypatch.setattr(Session, "link", "connected")
    with EtcdServer() as server:
        verdict = asyncio.run(cut_the_holder_off(server.endpoint, tmp_path / "calls"))
    assert "believed at once" in str(verdict)
