"""A run is deleted when nobody is part of it, and not otherwise."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from run_in_etcd import RunInEtcd, with_client

from instep.control import Keys, delete, runs, status
from instep.errors import CommandRefused, RunNotFound
from instep.etcd import Client
from instep.rendezvous.records import Limits, Registration
from instep.testing import EtcdServer


def told(server: EtcdServer, namespace: str, story: Callable[[RunInEtcd], Awaitable[None]]) -> None:
    async def work(client: Client) -> None:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        await run.join()
        await story(run)

    with_client(server, work)


def test_a_run_that_has_ended_is_deleted_and_its_neighbors_are_not(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        client = run.client
        await client.put(f"{namespace}/gpt-a2/config/lr", "1")
        await run.save(12)
        await run.report(0, 12)
        await run.leave()
        await run.die()
        keys = len((await client.range(run.keys.root)).kvs)
        deleted = await delete(client, run.keys)
        assert (deleted.keys, deleted.checkpoints, deleted.folders) == (keys, 1, ("/saved",))
        assert [found.name for found in (await runs(client, namespace)).runs] == ["gpt-a2"]
        with pytest.raises(RunNotFound):
            await delete(client, run.keys)

    told(etcd, namespace, story)


@pytest.mark.parametrize("who", ["worker", "agent", "torchrun"])
def test_a_run_that_somebody_is_part_of_is_not_deleted(etcd: EtcdServer, namespace: str, who: str) -> None:
    async def story(run: RunInEtcd) -> None:
        client, keys = run.client, run.keys
        if who != "worker":
            await run.die()
        if who == "agent":
            await client.put(keys.candidate("aaaaa-1-1"), "{}")
        if who == "torchrun":
            node = Registration(epoch=1, host="h", pid=1, limits=Limits(min_nodes=1, max_nodes=1))
            await client.put(f"{keys.root}rendezvous/nodes/n", node.encode())
        with pytest.raises(CommandRefused, match="nothing was deleted: run gpt-a is live"):
            await delete(client, keys)
        assert (await status(client, keys)).view is not None

    told(etcd, namespace, story)
