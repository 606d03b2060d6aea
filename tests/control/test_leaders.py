"""The history of who has led, as front ends see it."""

from __future__ import annotations

from control.run_in_etcd import with_client
from instep.cli._tables import leader_changes
from instep.control import HistoryReport, Keys, history
from instep.etcd import Client, Op
from instep.names import INCARNATION_LENGTH
from instep.protocol.records import CAME_FIRST, Leader
from instep.protocol.transactions import proclaim
from instep.testing import EtcdServer


async def led(client: Client, keys: Keys, *whys: str | None) -> None:
    """Ranks 0, 1, ... led one after the other."""
    await client.put(keys.config_of("lr"), "0.1")
    former = None
    for rank, why in enumerate(whys):
        leader = Leader(
            node=f"node-{rank}",
            rank=rank,
            incarnation=f"{rank:0{INCARNATION_LENGTH}d}",
            candidate="c",
            token=10 + rank,
            host=f"host-{rank}",
            term=rank + 1,
        )
        txn = proclaim(keys, leader, former, at="2026-01-01T00:00:00+00:00", why=why)
        await client.txn([], txn.then)
        former = leader


def test_history_tells_who_led_before_and_how_that_ended(etcd: EtcdServer, namespace: str) -> None:
    keys = Keys(namespace, "gpt-a")

    async def look(client: Client) -> HistoryReport:
        await led(client, keys, None, CAME_FIRST, "its process died", None)
        return await history(client, keys)

    found = with_client(etcd, look)
    newest = found.leaders[0]
    assert [leading.rank for leading in found.leaders] == [3, 2, 1, 0]
    assert (newest.term, newest.host, newest.token, newest.former_rank, newest.why) == (4, "host-3", 13, 2, None)
    assert (found.leaders[1].former_host, found.leaders[1].why) == ("host-1", "its process died")
    assert found.leaders[-1].former_rank is None
    assert found.to_json()["leaders"][1]["why"] == "its process died"
    assert [leading.rank for leading in leader_changes(found.leaders)] == [3, 2]  # not what happens while a run starts


def test_leaders_beyond_the_limit_and_damaged_records_are_passed_over(etcd: EtcdServer, namespace: str) -> None:
    keys = Keys(namespace, "gpt-a")

    async def look(client: Client) -> HistoryReport:
        await led(client, keys, *[None] * 120)
        await client.txn([], [Op.put(keys.term(119), "nonsense"), Op.put(f"{keys.terms}x", "{}")])
        return await history(client, keys, 1000)

    found = with_client(etcd, look)
    assert [leading.rank for leading in found.leaders] == [119, *range(117, 19, -1)]
    assert found.leaders[0].former_rank is None


def test_a_run_without_leaders_has_none(etcd: EtcdServer, namespace: str) -> None:
    keys = Keys(namespace, "gpt-a")

    async def look(client: Client) -> HistoryReport:
        await client.put(keys.config_of("lr"), "0.1")
        return await history(client, keys, 1)

    assert with_client(etcd, look).leaders == ()
