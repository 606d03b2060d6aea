"""A database that reaches its quota while writes are in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest

from async_support import until
from instep.errors import EtcdFull
from instep.etcd import Client, Compare, Op, TxnResult
from instep.recipes import Election, Session
from instep.testing import EtcdServer

QUOTA_BYTES = 4 * 1024 * 1024
AT_ONCE = 100
DATABASES = 5
VALUE = "x" * 20_000


@pytest.fixture
def small() -> Iterator[EtcdServer]:
    with EtcdServer(extra_args=[f"--quota-backend-bytes={QUOTA_BYTES}"]) as server:
        yield server


def test_a_write_refused_for_lack_of_space_may_have_been_applied_and_says_so() -> None:
    """Requests that were accepted when the quota was reached. etcd is paused until a whole burst is in flight, and
    its database grows with each write, so there are some; the rest is up to etcd."""

    async def fill(server: EtcdServer) -> tuple[dict[str, EtcdFull], set[str]]:
        refused: dict[str, EtcdFull] = {}
        async with Client([server.endpoint]) as client:

            async def write(key: str) -> None:
                try:
                    await client.txn([Compare.absent(key)], [Op.put(key, VALUE)])
                except EtcdFull as error:
                    refused[key] = error

            for burst in range(20):
                before = client.statistics().calls
                server.pause()
                writes = asyncio.gather(*(write(f"/fill/{burst}-{number}") for number in range(AT_ONCE)))
                await until(lambda before=before: client.statistics().calls >= before + AT_ONCE)
                server.resume()
                await writes
                if refused:
                    break
            return refused, {item.key for item in (await client.range("/fill/", keys_only=True)).kvs}

    for _ in range(DATABASES):
        quota = f"--quota-backend-bytes={QUOTA_BYTES}"
        with EtcdServer(extra_args=[quota, "--backend-batch-limit=1"]) as server:
            refused, there = asyncio.run(fill(server))
        assert refused
        assert all(error.applied_unknown for error in refused.values())
        if there & set(refused):
            return
    pytest.fail(f"none of them was applied in {DATABASES} databases: nothing was shown")


class BrimfulClient(Client):
    """The next transaction that puts a key reaches etcd at the moment of its quota: applied, and refused."""

    brimful = False

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        result = await super().txn(compares, then, otherwise, timeout_s=timeout_s)
        if self.brimful:
            self.brimful = False
            raise EtcdFull("the database has reached its quota")
        return result


def test_a_candidate_that_was_refused_but_created_is_removed() -> None:
    """Otherwise it would stay ahead of every candidate as long as its session lives."""

    async def main(server: EtcdServer) -> None:
        async with BrimfulClient(server.endpoints) as client, Session(client) as session:
            election = Election(client, session, "/vote/")
            client.brimful = True
            with pytest.raises(EtcdFull):
                await election.enter("a", "1")
            assert len((await client.range("/vote/")).kvs) == 1
            await election.resign()
            assert (await client.range("/vote/")).kvs == ()

    with EtcdServer() as server:
        asyncio.run(main(server))
