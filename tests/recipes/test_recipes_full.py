"""A database at its quota: a timeout names that as its reason."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from async_support import run, until
from instep.errors import EtcdFull, EtcdUnavailable, InstepError
from instep.etcd import Client
from instep.recipes import Group, Session
from instep.testing import EtcdServer

QUOTA_BYTES = 4 * 1024 * 1024
VALUE = "x" * 500_000
WAIT_S = 0.5


@pytest.fixture
def small() -> Iterator[EtcdServer]:
    with EtcdServer(extra_args=[f"--quota-backend-bytes={QUOTA_BYTES}"]) as server:
        yield server


@contextlib.asynccontextmanager
async def full(server: EtcdServer) -> AsyncIterator[tuple[Client, Session]]:
    """A client and a session from before the database was full."""
    async with Client(server.endpoints) as client, Session(client, ttl_s=5) as session:
        with contextlib.suppress(EtcdFull):
            for number in range(100):
                await client.put(f"/fill/{number}", VALUE)
        yield client, session


def says_full(error: InstepError) -> bool:
    return isinstance(error.__cause__, EtcdFull) and "NOSPACE" in str(error)


def test_a_timeout_names_a_full_etcd(small: EtcdServer) -> None:
    async def main() -> None:
        async with full(small) as (client, session):
            with pytest.raises(EtcdUnavailable, match=r"could not be joined in 0\.5 s") as away:
                await Group(client, session, "/group").join("a", timeout_s=WAIT_S)
            assert says_full(away.value)

    run(main())


def test_a_timeout_without_a_lease_names_the_reason(small: EtcdServer) -> None:
    async def main() -> None:
        async with full(small) as (client, session):
            await client.lease_revoke(session.lease_id)
            await until(lambda: session.trouble is not None)
            with pytest.raises(EtcdUnavailable) as late:
                await Group(client, session, "/group").join("a", timeout_s=WAIT_S)
            assert says_full(late.value)

    run(main())
