"""All recipes at once on three members, of which one after the other is killed and frozen; the checkers judge."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from recipe_contest import LIMIT, TIDY_S, Contest
from recipe_support import station

from async_support import run
from instep.coordination import Group, RetryBudget, Spent
from instep.testing import EtcdCluster
from instep.testing.checkers import check_barrier, check_exclusion, check_fencing

FREEZE_S = 2.5


@pytest.fixture
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(members=3) as running:
        yield running


@pytest.mark.parametrize("laps", [1, pytest.param(8, marks=pytest.mark.long)])
def test_every_recipe_holds_while_members_die_and_freeze(cluster: EtcdCluster, laps: int) -> None:
    contest = Contest(cluster.endpoints)

    async def main() -> None:
        contenders = [
            *(contest.locker(who) for who in ("l1", "l2", "l3")),
            *(contest.candidate(who) for who in ("e1", "e2")),
            *(contest.walker(who, 3) for who in ("b1", "b2", "b3")),
            *(contest.spender(who) for who in ("s1", "s2")),
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
        check_fencing(contest.writes("lock")),
        check_fencing(contest.writes("election")),
        check_barrier(contest.passages, 3),
    ):
        assert verdict.passed, str(verdict)
    assert contest.slowest_s < TIDY_S
    assert contest.leases_lost == 0
    print(f"{len(contest.holds)} holds, {contest.last_round} rounds, slowest {contest.slowest_s:.2f} s over")


async def lap(cluster: EtcdCluster, contest: Contest) -> None:
    """Each member is killed once, and the leader frozen; after each fault every recipe goes on."""
    for member in cluster.members:
        await asyncio.to_thread(member.kill)
        await asyncio.to_thread(member.restart)
        await asyncio.to_thread(cluster.wait_healthy)
        await contest.goes_on()
    leader = await asyncio.to_thread(cluster.leader)
    await asyncio.to_thread(leader.pause)
    await asyncio.sleep(FREEZE_S)  # the length of the fault
    leader.resume()
    await asyncio.to_thread(cluster.wait_healthy)
    await contest.goes_on()


async def nothing_is_left(cluster: EtcdCluster) -> None:
    async with station(cluster.endpoints) as (client, session):
        assert dict(await Group(client, session, "/contest/group").members()) == {}
        for recipe in ("lock", "election", "barrier/members"):
            assert not (await client.range(f"/contest/{recipe}/")).kvs, recipe
        history = await RetryBudget(client, "/contest/budget", LIMIT).history()
        attempts = [item.attempt for item in history if isinstance(item, Spent)]
        assert len(attempts) == len(set(attempts)) <= LIMIT
