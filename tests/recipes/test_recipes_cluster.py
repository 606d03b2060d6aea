"""All recipes at once on three members that are killed and frozen in turn; the checkers judge the records."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from recipe_contest import TIDY_S, Contest
from recipe_support import station

from async_support import run
from instep.recipes import Group
from instep.testing import EtcdCluster
from instep.testing.checkers import check_exclusion, check_fencing

FREEZE_S = 2.5


@pytest.fixture
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(members=3) as running:
        yield running


@pytest.mark.parametrize("laps", [1, pytest.param(8, marks=pytest.mark.long)])
def test_every_recipe_keeps_its_promise_while_members_die_and_freeze(cluster: EtcdCluster, laps: int) -> None:
    contest = Contest(cluster.endpoints)

    async def main() -> None:
        contenders = [
            *(contest.candidate(who) for who in ("e1", "e2", "e3")),
            *(contest.member(who) for who in ("m1", "m2")),
        ]
        async with asyncio.TaskGroup() as tasks:
            for contender in contenders:
                tasks.create_task(contender)
            for _ in range(laps):
                await lap(cluster, contest)
            contest.end()
        await nothing_is_left(cluster)

    run(main(), limit_s=60 + 60 * laps)
    for verdict in (
        check_exclusion(contest.holds),
        check_fencing(contest.writes("election")),
    ):
        assert verdict.passed, str(verdict)
    assert contest.slowest_s < TIDY_S
    assert contest.leases_lost == 0
    print(f"{len(contest.holds)} holds, slowest {contest.slowest_s:.2f} s over")


async def lap(cluster: EtcdCluster, contest: Contest) -> None:
    """Each member is killed once, and the leader frozen; after each fault every recipe continues."""
    for member in cluster.members:
        await asyncio.to_thread(member.kill)
        await asyncio.to_thread(member.restart)
        await asyncio.to_thread(cluster.wait_healthy)
        await contest.continues()
    leader = await asyncio.to_thread(cluster.leader)
    await asyncio.to_thread(leader.pause)
    await asyncio.sleep(FREEZE_S)  # the length of the fault
    leader.resume()
    await asyncio.to_thread(cluster.wait_healthy)
    await contest.continues()


async def nothing_is_left(cluster: EtcdCluster) -> None:
    async with station(cluster.endpoints) as (client, session):
        assert dict(await Group(client, session, "/contest/group").members()) == {}
        assert not (await client.range("/contest/election/")).kvs
