"""Checkpoints that etcd has lost are put in again, and those that are gone are taken off."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from run_in_etcd import with_client

from instep.control import Keys, adopt, checkpoints, forget
from instep.errors import ConfigError, RunNotFound
from instep.etcd import Client
from instep.protocol.records import Agreed, Epoch, Manifest, Pointer
from instep.recipes.token import epoch_of, make_token
from instep.testing import EtcdServer

T = TypeVar("T")


def record(step: int, token: int, *, plan: int = 3, lineage: tuple[str, ...] = ()) -> Manifest:
    """As it is read from a directory."""
    return Manifest(
        id=f"{step}-{token}",
        step=step,
        token=token,
        path=f"/ckpt/step-{step}-{token}",
        digest="0" * 64,
        view=7,
        plan=plan,
        world_size=1,
        rank=0,
        host="h",
        duration_s=0.1,
        lineage=lineage,
        committed_at="",
    )


def told(server: EtcdServer, namespace: str, story: Callable[[Client, Keys], Awaitable[T]]) -> T:
    return with_client(server, lambda client: story(client, Keys(namespace, "gpt-a")))


async def newest(client: Client, keys: Keys) -> tuple[Pointer | None, Pointer | None]:
    """What a start goes on from, and what the ranks hear of."""
    found = [await client.get(key) for key in (keys.latest, keys.saved)]
    return tuple(Pointer.decode(item.value) if item is not None else None for item in found)  # type: ignore[return-value]


def test_an_empty_etcd_lists_them_again_and_gives_tokens_above_theirs(etcd: EtcdServer, namespace: str) -> None:
    token = make_token(2, 10**9)

    async def story(client: Client, keys: Keys) -> None:
        was = await adopt(client, keys, [record(20, token), record(10, token)], author="ann")
        assert was.adopted == (f"10-{token}", f"20-{token}")
        assert was.latest == f"20-{token}"
        assert was.epoch == epoch_of(token) + 1
        epoch = await client.get(keys.epoch)
        assert epoch is not None
        assert Epoch.decode(epoch.value).author == "ann"
        latest, saved = await newest(client, keys)
        assert latest == saved
        assert latest is not None
        assert (latest.step, latest.view, latest.plan) == (20, 0, 0)  # of views that this etcd has not counted
        again = await adopt(client, keys, [record(20, token), record(10, token)])
        assert (again.adopted, again.epoch, len(again.known)) == ((), None, 2)

    told(etcd, namespace, story)


def test_what_etcd_knows_to_be_newer_stays_the_newest(etcd: EtcdServer, namespace: str) -> None:
    async def story(client: Client, keys: Keys) -> None:
        await adopt(client, keys, [record(50, 9)])
        was = await adopt(client, keys, [record(90, 8), record(50, 9)])
        assert (was.adopted, was.latest) == (("90-8",), "50-9")

    told(etcd, namespace, story)


def test_what_the_run_was_taken_back_from_does_not_become_the_newest(etcd: EtcdServer, namespace: str) -> None:
    async def story(client: Client, keys: Keys) -> None:
        await client.put(keys.agreed, Agreed(plan=5, view=7, values={}, back=4).encode())
        was = await adopt(client, keys, [record(50, 9, plan=4), record(90, 9, plan=3)])
        assert (was.adopted, was.latest) == (("50-9", "90-9"), "50-9")

    told(etcd, namespace, story)


def test_the_newest_that_is_forgotten_makes_room_for_what_it_went_on_from(etcd: EtcdServer, namespace: str) -> None:
    async def story(client: Client, keys: Keys) -> None:
        await adopt(client, keys, [record(10, 5), record(90, 6), record(20, 7, lineage=("10-5",))])
        await client.put(keys.checkpoint("30-4"), "rubbish")
        was = await forget(client, keys, ["20-7"])
        assert (was.forgotten, was.latest) == (("20-7",), "10-5")
        left = await checkpoints(client, keys)
        assert {item.id for item in left.checkpoints} == {"10-5", "90-6"}
        was = await forget(client, keys, everything=True)
        assert (len(was.forgotten), was.latest) == (3, None)
        assert await newest(client, keys) == (None, None)

    told(etcd, namespace, story)


def test_what_is_not_there_or_is_read_is_not_forgotten(etcd: EtcdServer, namespace: str) -> None:
    async def story(client: Client, keys: Keys) -> None:
        with pytest.raises(RunNotFound):
            await forget(client, keys, everything=True)
        await adopt(client, keys, [record(10, 5)])
        with pytest.raises(ConfigError, match="no checkpoint 11-5; its newest are: 10-5"):
            await forget(client, keys, ["11-5"])
        await client.put(keys.reader("10-5", "node"), "")
        with pytest.raises(ConfigError, match="is being read"):
            await forget(client, keys, ["10-5"])

    told(etcd, namespace, story)
