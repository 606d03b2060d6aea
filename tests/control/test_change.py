"""Values are written all together, with who and why, or not at all."""

from __future__ import annotations

import pytest
from run_in_etcd import RunInEtcd, with_client

from instep.control import Keys, Written, set_values
from instep.errors import ConfigError, RunNotFound, SettingsError
from instep.etcd import Client
from instep.protocol.records import Change
from instep.testing import EtcdServer


def test_values_author_and_reason_are_written_at_one_revision(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> Written:
        keys = Keys(namespace, "gpt-a")
        await RunInEtcd(client, keys).join()
        texts = {"lr": "1e-4", "sched": "cosine"}
        written = await set_values(client, keys, texts, author="ann", reason="loss\nspike")
        kvs = [await client.get(key) for key in (keys.config_of("lr"), keys.config_of("sched"))]
        mark = await client.get(keys.change(written.change_id))
        assert mark is not None
        assert [kv.text for kv in kvs if kv] == ["0.0001", '"cosine"']
        assert {kv.mod_revision for kv in [*kvs, mark] if kv} == {written.revision}
        change = Change.decode(mark.value)
        assert (change.author, change.reason, change.names) == ("ann", "loss spike", ("lr", "sched"))
        return written

    written = with_client(etcd, work)
    assert [(change.before, change.after) for change in written.changes] == [(3e-4, 1e-4), ("linear", "cosine")]
    assert written.live
    assert not written.already_agreed
    assert "asked_at_s" not in written.to_json()


def test_one_bad_value_keeps_all_from_being_written(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        await RunInEtcd(client, keys).join()
        with pytest.raises(ConfigError):
            await set_values(client, keys, {"clip": "0.5", "lr": "7"})
        assert not (await client.range(keys.config)).kvs
        assert not (await client.range(keys.changes)).kvs

    with_client(etcd, work)


def test_a_run_that_is_not_there_is_named_with_what_may_have_been_meant(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        await RunInEtcd(client, Keys(namespace, "gpt-a")).join()
        with pytest.raises(RunNotFound, match=r"did you mean 'gpt-a'\?.*--create"):
            await set_values(client, Keys(namespace, "gpt-b"), {"lr": "1"})
        assert not (await client.range(f"{namespace}/gpt-b/")).kvs

    with_client(etcd, work)


def test_a_run_to_come_can_be_given_its_first_values(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-b")
        written = await set_values(client, keys, {"lr": "1"}, create=True)
        assert not written.live
        await set_values(client, keys, {"lr": "2"})

    with_client(etcd, work)


def test_a_value_that_all_ranks_have_already_is_said_to_be_so(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> Written:
        keys = Keys(namespace, "gpt-a")
        await RunInEtcd(client, keys).join()
        return await set_values(client, keys, {"lr": "0.0003"})

    assert with_client(etcd, work).already_agreed


def test_an_overlong_reason_is_refused(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(SettingsError, match="reason"):
            await set_values(client, Keys(namespace, "gpt-a"), {"lr": "1"}, reason="x" * 1001, create=True)

    with_client(etcd, work)
