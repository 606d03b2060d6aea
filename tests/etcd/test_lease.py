"""Leases: granted, kept alive, and considered valid only as long as that is certain."""

from __future__ import annotations

import asyncio

import pytest

from async_support import run, until
from instep.errors import EtcdUnavailable, LeaseLost, SettingsError
from instep.etcd import Client, LeaseKeeper, LeaseTiming
from instep.testing import EtcdServer


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_deletes_its_keys_when_it_ends(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            lease = await client.lease_grant(30)
            assert lease.ttl_s == 30
            await client.put("lease/a", "1", lease=lease.id)
            found = await client.get("lease/a")
            assert found is not None
            assert found.lease == lease.id
            assert await client.keepalive(lease.id) == 30
            await client.lease_revoke(lease.id)
            assert await client.get("lease/a") is None
            with pytest.raises(LeaseLost) as lost:
                await client.keepalive(lease.id)
            assert lost.value.lease_id == lease.id
            await client.lease_revoke(lease.id)

    run(main())


def test_a_kept_lease_outlives_its_ttl_and_ends_with_its_keeper(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client:
            async with LeaseKeeper(client, ttl_s=2) as keeper:
                await client.put("kept", "1", lease=keeper.lease_id)
                await until(lambda: keeper.renewals >= 5)
                assert keeper.state == "connected"
                assert 0 < keeper.remaining_s <= 1.8
                assert await client.get("kept") is not None
            assert await client.get("kept") is None
            assert not keeper.valid

    run(main())


def test_a_lease_revoked_by_others_is_lost_at_the_next_renewal(shared_server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([shared_server.endpoint]) as client, LeaseKeeper(client, ttl_s=2) as keeper:
            await client.lease_revoke(keeper.lease_id)
            async with asyncio.timeout(3):
                await keeper.wait_lost()
            assert (keeper.state, keeper.valid, keeper.remaining_s) == ("lost", False, 0.0)

    run(main())


def test_a_lease_is_suspended_then_lost_when_etcd_does_not_answer(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint], timeout_s=1) as client, LeaseKeeper(client, ttl_s=3) as keeper:
            server.pause()
            try:
                async with asyncio.timeout(10):
                    assert await keeper.wait_state_change() == "suspended"
                    assert keeper.valid
                    await keeper.wait_lost()
                assert keeper.state == "lost"
            finally:
                server.resume()

    run(main())


def test_a_lease_comes_back_to_connected_after_a_short_freeze(server: EtcdServer) -> None:
    async def main() -> None:
        async with Client([server.endpoint]) as client, LeaseKeeper(client, ttl_s=6) as keeper:
            server.pause()
            async with asyncio.timeout(10):
                assert await keeper.wait_state_change() == "suspended"
                server.resume()
                assert await keeper.wait_state_change() == "connected"

    run(main())


def test_validity_counts_from_sending_and_needs_only_the_clock(shared_server: EtcdServer) -> None:
    async def main() -> None:
        clock = Clock()
        async with Client([shared_server.endpoint]) as client:
            keeper = LeaseKeeper(client, ttl_s=50, clock=clock)
            assert (keeper.valid, keeper.state, keeper.lease_id) == (False, "lost", 0)
            async with keeper:
                assert keeper.remaining_s == 45
                clock.now += 44.9
                assert keeper.valid
                clock.now += 0.2
                assert (keeper.valid, keeper.state) == (False, "lost")

    run(main())


def test_a_lease_that_was_reported_lost_is_not_renewed(shared_server: EtcdServer) -> None:
    """A process that was stopped for most of its TTL: etcd still holds the lease, but others may have acted on its
    loss."""

    async def main() -> None:
        clock = Clock()
        async with Client([shared_server.endpoint]) as client, LeaseKeeper(client, ttl_s=2, clock=clock) as keeper:
            await asyncio.sleep(0)  # it waits for the time of its next renewal
            clock.now += 1.9
            assert not keeper.valid
            async with asyncio.timeout(10):
                await keeper.wait_lost()
            assert (keeper.valid, keeper.renewals) == (False, 0)

    run(main())


def test_a_lease_that_cannot_be_granted_raises() -> None:
    async def main() -> None:
        async with Client(["127.0.0.1:1"], timeout_s=0.3) as client:
            with pytest.raises(EtcdUnavailable, match=r"etcd at http://127\.0\.0\.1:1 .*: no answer within 0\.3 s"):
                await LeaseKeeper(client).__aenter__()

    run(main())


def test_a_ttl_that_etcd_does_not_grant_is_refused() -> None:
    with pytest.raises(SettingsError, match="too short"):
        LeaseTiming(1.0)


def test_the_timing_leaves_room_for_two_attempts_at_every_ttl() -> None:
    for ttl_s in range(2, 600):
        timing = LeaseTiming(ttl_s)
        assert timing.renew_every_s + 2 * timing.attempt_s <= ttl_s - timing.margin_s


def test_the_timing_rides_out_a_frozen_leader_for_most_of_its_ttl() -> None:
    for ttl_s, rides_out_s in ((5, 4.0), (10, 8.0), (30, 25.0), (60, 52.0)):
        assert LeaseTiming(ttl_s).rides_out_s == pytest.approx(rides_out_s)
