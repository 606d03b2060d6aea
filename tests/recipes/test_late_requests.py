"""A request that etcd applies long after its caller has given it up does not undo what was done since.

This happens: a server that was frozen processes its buffers when it wakes, and a member without a quorum keeps requests
until there is one again. No read can settle that; each recipe has to guard its requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import pytest
from recipe_support import keys

from async_support import run, until
from instep.agent.retrying_writer import QuotaMonitor, RetryingWriter
from instep.errors import EtcdUnavailable
from instep.etcd import Client, Compare, Op, TxnResult
from instep.protocol.keys import Keys
from instep.recipes import Election, Group, Session
from instep.testing import EtcdServer

Request = tuple[Sequence[Compare], Sequence[Op]]


class LateClient(Client):
    """Its network holds back the next transaction that puts a key, and delivers it when the test says so."""

    def __init__(self, endpoints: Iterable[str]) -> None:
        super().__init__(list(endpoints))
        self._keeps = ""
        self._kept: Request | None = None

    def keep_next(self, key: str) -> None:
        self._keeps = f"put {key}"

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        if self._keeps and any(op.text.startswith(self._keeps) for op in then):
            self._keeps, self._kept = "", (compares, then)
            raise EtcdUnavailable("no answer", applied_unknown=True)
        return await super().txn(compares, then, otherwise, timeout_s=timeout_s)

    async def deliver(self) -> bool:
        """Whether etcd applied it."""
        assert self._kept is not None, "nothing was kept"
        compares, then = self._kept
        return (await super().txn(compares, then)).succeeded


def test_a_late_request_does_not_restore_a_candidate_that_resigned(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with LateClient(etcd.endpoints) as client, Session(client) as session:
            election = Election(client, session, namespace)
            client.keep_next(namespace)
            await election.campaign("a")
            await election.resign()
            assert not await client.deliver()
            assert await keys(client, namespace) == []

    run(main())


def test_a_candidate_that_was_replaced_stays_replaced(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with LateClient(etcd.endpoints) as client, Session(client) as session:
            election = Election(client, session, namespace)
            client.keep_next(namespace)
            with pytest.raises(EtcdUnavailable):
                await election.enter("dead", "dead")
            await election.enter("alive", "alive")
            assert not await client.deliver()
            assert [item.text for item in await keys(client, namespace)] == ["alive"]

    run(main())


def test_a_late_request_does_not_restore_a_member_that_left(etcd: EtcdServer, namespace: str) -> None:
    async def main() -> None:
        async with LateClient(etcd.endpoints) as client, Session(client) as session:
            group = Group(client, session, namespace)
            client.keep_next(f"{namespace}/x")
            await group.join("x")
            await group.leave()
            assert not await client.deliver()
            assert await group.members() == {}
            await group.join("x")
            assert list(await group.members()) == ["x"]

    run(main())


def test_the_last_value_that_a_node_keeps_wins_over_a_late_earlier_one(etcd: EtcdServer, namespace: str) -> None:
    """The ranks that have left: an earlier, shorter list would turn clean ends into failures."""

    async def main() -> None:
        async with LateClient(etcd.endpoints) as client:
            effects, key = (
                RetryingWriter(client, Keys(namespace, "run"), QuotaMonitor(lambda text: None)),
                f"{namespace}/left",
            )
            done: list[str] = []
            client.keep_next(key)
            effects.keep(key, "0")
            effects.when_kept(key, partial(done.append, "0"))
            await until(lambda: done)
            effects.keep(key, "0,1")
            effects.keep(key, "0,1,2")
            effects.when_kept(key, partial(done.append, "0,1,2"))
            await effects.drain(20)
            assert done == ["0", "0,1,2"]
            assert not await client.deliver()
            held = await client.get(key)
            assert held is not None
            assert held.text == "0,1,2"
            effects.keep(key, None)
            await effects.drain(20)
            assert await client.get(key) is None

    run(main())
