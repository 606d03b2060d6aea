"""What proves that etcd holds another history than before, and what does not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from async_support import run, until
from instep.errors import HistoryChanged
from instep.etcd import Client, StoreHistory, _wire
from instep.etcd._cursor import PATIENCE, Cursor
from instep.etcd._types import KeyValue
from instep.recipes.informer import Informer
from instep.tasks import cancelled
from instep.testing import EtcdServer


def header(revision: int, cluster: int = 7) -> Any:
    return _wire.PUT.deserialize(b"").header.__class__(cluster_id=cluster, revision=revision)


def seen(revision: int) -> StoreHistory:
    history = StoreHistory()
    history.heard(header(revision), history.now(), linearizable=True)
    return history


def test_a_linearizable_answer_below_a_known_revision_proves_another_history() -> None:
    history = seen(10)
    history.heard(header(9), history.now(), linearizable=True)
    assert (history.changes, history.lost, history.revision) == (1, 10, 9)


def test_an_answer_to_an_earlier_request_may_be_below() -> None:
    history = seen(10)
    sent = history.now()
    history.heard(header(12), history.now(), linearizable=True)
    history.heard(header(11), sent, linearizable=True)
    assert (history.changes, history.revision) == (0, 12)


def test_a_member_that_lags_proves_nothing() -> None:
    history = seen(10)
    history.heard(header(3), history.now(), linearizable=False)
    assert (history.changes, history.revision) == (0, 10)


@pytest.mark.parametrize("linearizable", [True, False])
def test_another_cluster_id_proves_another_history_once(linearizable: bool) -> None:
    history = seen(10)
    sent = history.now()
    history.heard(header(20, cluster=8), sent, linearizable=linearizable)
    history.heard(header(21, cluster=8), history.now(), linearizable=linearizable)
    history.heard(header(11, cluster=7), sent, linearizable=True)  # it was in flight
    assert (history.changes, history.lost, history.cluster) == (1, 10, 8)


def test_a_listener_is_called_at_each_change_until_it_ends() -> None:
    history, heard = seen(10), []
    end = history.listen(lambda: heard.append(history.lost))
    history.changed("a test")
    end()
    end()
    history.changed("a test")
    assert heard == [10]


def response(*events: tuple[int, str], fragment: bool = False, revision: int = 0) -> Any:
    reply = _wire.WATCH.deserialize(b"")
    reply.header.revision = revision
    reply.fragment = fragment
    for at, key in events:
        found = reply.events.add()
        found.kv.key, found.kv.mod_revision = key.encode(), at
    return reply


def broken_after(*events: tuple[int, str]) -> Cursor:
    cursor = Cursor(5)
    cursor.created(9)
    assert cursor.feed(response(*events)) is not None
    cursor.created(9)
    return cursor


def test_a_new_stream_begins_with_the_last_delivered_event() -> None:
    cursor = broken_after((6, "a"))
    assert cursor.start_revision == 6
    batch = cursor.feed(response((6, "a"), (7, "b")))
    assert batch is not None
    assert [item.kv.key for item in batch.events] == ["b"]
    assert not cursor.changed


@pytest.mark.parametrize("events", [[(6, "x")], [(7, "b")], [(6, "x"), (7, "b")]])
def test_another_event_in_its_place_is_another_history(events: list[tuple[int, str]]) -> None:
    cursor = broken_after((6, "a"))
    assert cursor.feed(response(*events)) is None
    assert cursor.changed


def test_a_fragment_of_the_expected_revision_is_not_another_history() -> None:
    cursor = broken_after((6, "x"), (6, "a"))
    assert cursor.feed(response((6, "x"), fragment=True)) is None
    assert not cursor.changed
    assert cursor.feed(response((6, "a"))) is None
    assert not cursor.changed


def test_a_missing_event_is_another_history_and_a_lagging_member_is_not() -> None:
    cursor = broken_after((6, "a"))
    for _ in range(2 * PATIENCE):
        cursor.feed(response(revision=5))
    assert not cursor.changed
    for _ in range(PATIENCE):
        cursor.feed(response(revision=6))
    assert cursor.changed


def test_a_watch_without_events_checks_a_listed_key() -> None:
    cursor = Cursor(9, KeyValue("a", b"", 4, 4, 1, 0))
    assert cursor.start_revision == 9
    cursor.created(9)
    assert cursor.start_revision == 4


@pytest.mark.parametrize("how", ["restored", "grown past", "wiped", "another cluster"])
def test_an_informer_lists_again_when_etcd_has_gone_back(how: str) -> None:
    async def main(server: EtcdServer) -> None:
        async with Client(server.endpoints) as client:
            resets: list[int] = []
            informer = Informer(client, "/m/", on_reset=lambda: resets.append(1))
            task = asyncio.create_task(informer.run())
            await client.put("/m/a", "1")
            backup = await asyncio.to_thread(server.snapshot)
            for number in range(5):
                await client.put("/m/b", str(number))
            await until(lambda: informer.get("/m/b") is not None and informer.revision == client.history.revision)
            if how == "wiped":
                await asyncio.to_thread(server.wipe)
            else:
                await asyncio.to_thread(server.restore, backup, another_cluster=how == "another cluster")
            async with Client(server.endpoints) as other:
                for number in range(20 if how == "grown past" else 1):
                    await other.put("/else", str(number))
                await other.put("/m/c", "3")
            await until(lambda: set(informer.keys) == ({"/m/c"} if how == "wiped" else {"/m/a", "/m/c"}))
            if how != "grown past":
                assert client.history.changes
                assert resets
            await cancelled(task)

    with EtcdServer() as server:
        run(main(server))


def test_a_watch_raises_history_changed() -> None:
    async def main(server: EtcdServer) -> None:
        async with Client(server.endpoints) as client:
            await client.put("k", "1")
            async with client.watch("k", start_revision=1) as watch:
                await anext(watch)
                await asyncio.to_thread(server.wipe)
                with pytest.raises(HistoryChanged, match="another history"):
                    await anext(watch)

    with EtcdServer() as server:
        run(main(server))
