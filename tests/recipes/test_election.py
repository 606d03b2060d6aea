"""The election: the oldest candidate leads, and its token decides."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from recipe_support import keys, newest, station

from async_support import run, until
from instep.errors import EtcdUnavailable, LeaseLost, SettingsError
from instep.etcd import Client, Listing, Op
from instep.recipes import Election, Incumbent, Session
from instep.testing import EtcdServer, Proxy


def test_the_next_candidate_leads_when_the_leader_resigns(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = Election(a, ours, namespace), Election(b, theirs, namespace)
            assert await first.incumbent() is None
            fence = await first.campaign("a")
            assert await first.campaign("a") == fence
            assert (first.leading, second.leading) == (True, False)
            waiting = asyncio.create_task(second.campaign("b"))
            await until(lambda: _count(a, namespace, 2))
            assert await second.incumbent() == Incumbent("a", fence)
            await first.resign()
            assert not first.leading
            assert (await waiting).token > fence.token
            assert (first.statistics().won, first.statistics().lost) == (1, 1)

    run(main())


def test_a_place_is_taken_over_from_several_dead_processes_in_turn(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            tokens, former = [], 0
            for _ in range(3):  # the sessions of dead processes remain: their leases have not ended yet
                client, session = await stack.enter_async_context(station(etcd.endpoints))
                election = Election(client, session, namespace, former_lease=former)
                tokens.append((await election.campaign("a")).token)
                former = session.lease_id
            assert len(set(tokens)) == 1
            assert [item.lease for item in (await client.range(namespace)).kvs] == [former]

    run(main())


def test_a_campaign_ends_with_its_session(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), Client(etcd.endpoints) as b:
            await Election(a, ours, namespace).campaign("a")
            async with Session(b, ttl_s=2) as session:
                waiting = asyncio.create_task(Election(b, session, namespace).campaign("b"))
                await until(lambda: _count(a, namespace, 2))
            with pytest.raises(LeaseLost, match="has ended"):
                await waiting

    run(main())


def test_an_election_object_is_for_one_task_and_keeps_its_value(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = Election(a, ours, namespace), Election(b, theirs, namespace)
            fence = await first.campaign("a")
            assert await first.campaign("b") == fence
            assert await second.incumbent() == Incumbent("a", fence)
            waiting = asyncio.create_task(second.campaign("b"))
            await until(lambda: _count(a, namespace, 2))
            with pytest.raises(SettingsError, match="already in a campaign"):
                await second.campaign("c")
            await first.resign()
            assert await waiting == second.fence
            assert await second.campaign("b") == second.fence

    run(main())


def test_a_leader_whose_key_was_deleted_by_hand_is_notified_and_fenced(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (client, session):
            election = Election(client, session, namespace)
            fence = await election.campaign("a")
            over = asyncio.create_task(election.lost(fence))
            await client.delete(fence.key)
            await over
            assert not election.leading
            assert not (await client.txn([fence.compare()], [Op.put(f"{namespace}-data", "1")])).succeeded
            assert (await election.campaign("a")).token > fence.token

    run(main())


def test_a_key_with_no_lease_blocks_no_candidate(etcd: EtcdServer, namespace: str) -> None:
    """No process renews it, so only a candidate would ever remove it."""

    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            await a.put(f"{namespace}/stray", "written by hand")
            first, second = Election(a, ours, namespace), Election(b, theirs, namespace)
            async with asyncio.timeout(10):
                fence = await first.campaign("a")
            waiting = asyncio.create_task(second.campaign("b"))
            await until(lambda: _count(a, namespace, 2))
            await a.put(fence.key, "written by hand")
            async with asyncio.timeout(10):
                await first.lost(fence)
                assert (await waiting).token > fence.token
            assert [item.text for item in await keys(a, namespace)] == ["b"]

    run(main())


def test_an_overwritten_candidate_is_created_again(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints) as (b, theirs):
            first, second = Election(a, ours, namespace), Election(b, theirs, namespace)
            await first.campaign("a")
            waiting = asyncio.create_task(second.campaign("b"))
            await until(lambda: _count(a, namespace, 2))
            entered = max(await keys(a, namespace), key=lambda item: item.create_revision)
            await a.put(entered.key, "written by hand")
            await first.resign()
            async with asyncio.timeout(10):
                assert (await waiting).token > entered.create_revision
            assert [(item.text, item.lease) for item in await keys(a, namespace)] == [("b", theirs.lease_id)]

    run(main())


def test_a_candidate_whose_session_was_lost_is_created_again(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with station(etcd.endpoints) as (a, ours), station(etcd.endpoints, ttl_s=2) as (b, theirs):
            first, second = Election(a, ours, namespace), Election(b, theirs, namespace)
            await first.campaign("a")
            waiting = asyncio.create_task(second.campaign("b"))
            await until(lambda: _count(a, namespace, 2))
            before = await newest(a, namespace)
            await a.lease_revoke(theirs.lease_id)
            await until(lambda: _count_after(a, namespace, before))
            await first.resign()
            await waiting
            assert second.leading

    run(main())


class OverrunClient(Client):
    """Its next listing takes so long that the lease has ended by our own clock when it arrives."""

    now = 0.0
    slow = False

    async def range(self, prefix: str, **options: Any) -> Listing:
        listing = await super().range(prefix, **options)
        if self.slow:
            self.now += 100
        return listing


@pytest.mark.parametrize("at", ["while waiting", "while looking"])
def test_a_candidate_without_a_valid_lease_after_the_wait_is_not_elected(
    etcd: EtcdServer, namespace: str, at: str
) -> None:
    """Its key is then the oldest, and its lease still exists in etcd (etcd issue 19597)."""

    async def main() -> None:
        async with (
            station(etcd.endpoints) as (a, ours),
            OverrunClient(etcd.endpoints) as b,
            Session(b, ttl_s=60, clock=lambda: b.now) as theirs,
        ):
            first, second = Election(a, ours, namespace), Election(b, theirs, namespace)
            await first.campaign("a")
            waiting = asyncio.create_task(second.campaign("b"))
            await until(lambda: _count(a, namespace, 2))
            b.slow = at == "while looking"
            b.now += 0 if b.slow else 100
            await first.resign()
            await until(lambda: theirs.lease_id == 0)
            incumbent = await first.incumbent()
            assert incumbent is not None
            assert incumbent.value == "b"
            for _ in range(10):
                await b.get(namespace)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait([waiting])

    run(main())


def test_a_leader_stops_acting_before_its_lease_is_lost(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with station(etcd_server.endpoints, ttl_s=3, timeout_s=1) as (client, session):
            election = Election(client, session, "/suspended")
            fence = await election.campaign("a")
            over = asyncio.create_task(election.lost(fence))
            etcd_server.pause()
            try:
                assert await session.wait_link("suspended", "lost") == "suspended"
                assert (session.valid, election.leading) == (True, False)
                await over
                assert session.link == "lost"
            finally:
                etcd_server.resume()
            assert (await election.campaign("a")).token > fence.token

    run(main())


def test_a_lost_reply_makes_no_second_candidate(etcd: EtcdServer, namespace: str) -> None:
    async def main(proxy: Proxy) -> None:
        async with station([proxy.endpoint]) as (client, session):
            election = Election(client, session, namespace)
            proxy.lose_next_reply(namespace.encode())
            await election.campaign("a")
            assert await _count(client, namespace, 1)
            proxy.lose_next_reply(namespace.encode())
            await election.resign()
            await until(lambda: _count(client, namespace, 0))
            assert proxy.statistics().replies_lost == 2

    with Proxy("127.0.0.1", etcd.port) as proxy:
        run(main(proxy))


def test_an_unconfirmed_candidate_is_removed_when_another_is_created(etcd: EtcdServer, namespace: str) -> None:
    """As if the worker that would have led died at that moment."""

    async def main(proxy: Proxy) -> None:
        async with station([proxy.endpoint]) as (client, session):
            election = Election(client, session, namespace)
            proxy.lose_next_reply(namespace.encode())
            with pytest.raises(EtcdUnavailable):
                await election.enter("dead", "dead")

            async def candidate_entered() -> bool:
                with contextlib.suppress(EtcdUnavailable):  # the broken connection may break this one too
                    await election.enter("alive", "alive")
                    return True
                return False

            await until(candidate_entered)
            (candidate,) = await keys(client, namespace)
            assert candidate.text == "alive"
            assert (await election.elected()).token == candidate.create_revision

    with Proxy("127.0.0.1", etcd.port) as proxy:
        run(main(proxy))


def test_a_resignation_during_an_outage_is_completed_later(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with station(etcd_server.endpoints, ttl_s=30, timeout_s=0.5) as (client, session):
            election = Election(client, session, "/resigned")
            await election.campaign("a")
            etcd_server.pause()
            await election.resign()
            etcd_server.resume()
            await until(lambda: _count(client, "/resigned", 0))

    run(main())


def test_a_create_that_arrives_after_the_resignation_leaves_no_candidate(etcd_server: EtcdServer) -> None:
    async def main() -> None:
        async with station(etcd_server.endpoints, ttl_s=30, timeout_s=0.4) as (client, session):
            election = Election(client, session, "/late")
            etcd_server.pause()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.6):
                    await election.campaign("a")
            etcd_server.resume()
            async with station(etcd_server.endpoints) as (other, theirs):
                async with asyncio.timeout(10):
                    await Election(other, theirs, "/late").campaign("b")
            await until(lambda: session.statistics().background_tasks == 0)
            assert await keys(client, "/late") == []

    run(main())


def test_a_candidate_waits_for_the_one_before_it_only(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with (
            station(etcd.endpoints) as (a, ours),
            station(etcd.endpoints) as (b, theirs),
            station(etcd.endpoints) as (c, last),
        ):
            first, second, third = (Election(*one, namespace) for one in ((a, ours), (b, theirs), (c, last)))
            await first.campaign("a")
            in_between = asyncio.create_task(second.campaign("b"))
            await until(lambda: _count(a, namespace, 2))
            waiting = asyncio.create_task(third.campaign("c"))
            await until(lambda: _count(a, namespace, 3))
            in_between.cancel()
            await asyncio.wait([in_between])
            assert not waiting.done()
            await first.resign()
            assert await waiting == third.fence

    run(main())


async def _count_after(client: Client, prefix: str, revision: int) -> bool:
    """Whether there are two candidates, one of which was created after that revision."""
    return await _count(client, prefix, 2) and await newest(client, prefix) > revision


async def _count(client: Client, prefix: str, count: int) -> bool:
    return len(await keys(client, prefix)) == count
