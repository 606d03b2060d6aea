"""The part of chaos in which etcd's history goes back; the addresses and listings that the other part breaks."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chaos.etcd_restores import RestoreKind, Victim, rounds, still_kept
from chaos.harness import hosts_file
from chaos.harness.link import LISTING, Link
from chaos.harness.shared_state import Field, SharedState
from chaos.options import parse
from chaos.prober import planned_after

from async_support import run
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.testing import EtcdServer
from unit.parts import manifest

ROOT = Path(__file__).resolve().parents[2]


def test_a_few_rounds_include_every_restore_and_every_victim() -> None:
    for seed in range(5):
        first = list(itertools.islice(rounds(seed), 6))
        assert {item.kind for item in first} == set(RestoreKind)
        assert {item.victim for item in first} == set(Victim)
        assert first == list(itertools.islice(rounds(seed), 6))
        assert all(1 <= item.changes <= 3 for item in first)


def test_a_session_of_ten_minutes_has_both_parts_and_a_short_one_the_requested_part() -> None:
    hour = parse(["--seed=1", "--duration-s=3600"])
    assert (hour.faults_s, hour.history_s) == (3000, 600)
    short = parse(["--seed=1", "--duration-s=60"])
    assert (short.faults_s, short.history_s) == (60, 0)
    only = parse(["--seed=1", "--duration-s=60", "--only=history"])
    assert (only.faults_s, only.history_s) == (0, 60)
    assert "--only history" in only.command


def test_the_range_that_a_leader_lists_ends_as_the_fault_expects() -> None:
    """A range of a prefix ends with the next byte after its last one."""
    prefix = Keys("/training", "a").members
    assert f"{prefix[:-1]}{chr(ord(prefix[-1]) + 1)}".encode().endswith(LISTING)


def test_a_listing_that_is_lost_is_not_answered_and_everything_else_is(etcd: EtcdServer, namespace: str) -> None:
    keys = Keys(namespace, "a")

    async def main(link: Link) -> None:
        async with Client(link.endpoints, timeout_s=1.0) as client:
            await client.put(f"{keys.members}x", "1")
            link.lose_listings()
            assert (await client.get(f"{keys.members}x")) is not None
            (lost,) = link._proxies
            found = await client.range(keys.members)  # made again, as a read may be
            assert (len(found.kvs), lost.statistics().replies_lost) == (1, 1)

    link = Link(etcd.endpoints)
    try:
        run(main(link))
    finally:
        link.close()


def test_the_record_of_a_deleted_checkpoint_that_a_backup_restores_is_no_lost_checkpoint() -> None:
    first, second = (manifest(step, 5) for step in (1, 2))
    saved = [{"outcome": "committed", "forgotten": [first.id]}, {"outcome": "does not lead"}]
    assert still_kept([first, second], saved) == [second]


def test_the_time_without_a_leader_ends_with_the_next_plan() -> None:
    assert planned_after([1.0, 5.0, 9.0], [0.5, 1.5, 6.0]) == [0.5, 1.0]


MOVES = """
import sys
from chaos.harness import hosts_file
from chaos.harness.link import Link
from instep.errors import EtcdError
from instep.etcd import Client
import asyncio

hosts_file.enter()
if not hosts_file.can_move():
    sys.exit(77)

async def value(link):
    async with Client(link.endpoints, timeout_s=2.0) as client:
        return (await client.get(sys.argv[2])).text

link = Link([sys.argv[1]], "a")
before = link.endpoints
print(asyncio.run(value(link)))
link.leave_address()
try:
    asyncio.run(value(link))
except EtcdError:
    print("gone")
link.arrive_elsewhere()
print(asyncio.run(value(link)))
assert link.endpoints == before
link.close()
hosts_file.leave()
"""


def test_names_resolve_to_another_address_after_a_move_and_to_none_before(etcd: EtcdServer, namespace: str) -> None:
    hosts = hosts_file.HOSTS.read_bytes()
    etcd.etcdctl("put", "--", f"{namespace}/k", "here")
    done = subprocess.run(
        [sys.executable, "-c", MOVES, etcd.endpoint, f"{namespace}/k"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert hosts_file.HOSTS.read_bytes() == hosts, "the machine's own file is left alone"
    if done.returncode == 77:
        pytest.skip("no mount namespaces here")
    assert (done.returncode, done.stdout.split()) == (0, ["here", "gone", "here"]), done.stderr


def test_ranks_that_were_all_just_started_wait_for_no_rank(tmp_path: Path) -> None:
    """No collective can time out before they have joined."""
    shared = SharedState(tmp_path / "shared", 2, create=True)
    shared.begin_at(7)
    assert not shared.is_waited()
    shared.set(1, Field.ARRIVED, 7)
    assert shared.is_waited()
    shared.set(0, Field.ARRIVED, 7)
    assert not shared.is_waited()
    shared.close()
