"""Looking back, and going back: diff, rollback, and the schedule that a run was trained with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from run_in_etcd import START, RunInEtcd, with_client

from instep.control import Keys, diff, history, rollback, schedule, set_values, wait
from instep.errors import ConfigError, RunNotFound, SettingsError
from instep.etcd import Client, Op
from instep.protocol.records import FirstStep, StartOfView
from instep.testing import EtcdServer

T = TypeVar("T")


def told(server: EtcdServer, namespace: str, story: Callable[[RunInEtcd], Awaitable[T]]) -> T:
    """Lets a story happen to a run of four ranks that trains."""

    async def work(client: Client) -> T:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        await begin(run)
        return await story(run)

    return with_client(server, work)


async def begin(run: RunInEtcd, *, step: int = 0, **values: float) -> None:
    await run.join(values=values)
    start = StartOfView(view=run.view, values=run.values, plan=run.plan)
    first = FirstStep(step=step)
    puts = [Op.put(run.keys.start_of(run.view), start.encode())]
    puts.append(Op.put(run.keys.first_step_of(run.view), first.encode()))
    await run.client.txn([], puts)


async def change(run: RunInEtcd, gate: int, **values: float | str) -> None:
    """Somebody wants it, and it is agreed on."""
    written = await set_values(
        run.client, run.keys, {name: str(value) for name, value in values.items()}, author="ann", reason="why not"
    )
    await run.open(written.revision, written.values, gate=gate)
    await run.ack()
    await run.commit(written.values, written.revision, gate=gate)
    await run.receipt(step=gate)


async def standing(run: RunInEtcd) -> dict[str, str]:
    listing = await run.client.range(run.keys.config)
    return {kv.key.removeprefix(run.keys.config): kv.text for kv in listing.kvs}


# -- diff ----------------------------------------------------------------------------------------------------------


def test_two_moments_differ_in_the_values_that_changed_between_them(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        await change(run, 10, lr=0.5)
        await change(run, 20, lr=0.25, sched="cosine")
        found = await diff(run.client, run.keys, "1", "#2")
        assert [(item.name, item.before, item.after) for item in found.changes] == [
            ("lr", 0.5, 0.25),
            ("sched", "linear", "cosine"),
        ]
        assert (found.before, found.after) == ("1", "2")
        back = await diff(run.client, run.keys, "now", "start")
        assert {item.name: item.after for item in back.changes} == {"lr": START["lr"], "sched": "linear"}
        assert (await diff(run.client, run.keys, "2", "now")).changes == ()

    told(etcd, namespace, story)


def test_a_moment_that_is_none_is_refused_with_what_there_is(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        with pytest.raises(ConfigError, match="has no plan 1: nothing has been changed yet"):
            await diff(run.client, run.keys, "1", "now")
        await change(run, 10, lr=0.5)
        await run.open(99, {"lr": 0.9})
        with pytest.raises(ConfigError, match="plan 2 of run gpt-a is not decided yet"):
            await diff(run.client, run.keys, "start", "2")
        await run.abort("rank 3 was late")
        with pytest.raises(ConfigError, match=r"was aborted \(rank 3 was late\): it changed nothing"):
            await diff(run.client, run.keys, "start", "2")
        with pytest.raises(ConfigError, match="has no plan 7: its newest is 2"):
            await diff(run.client, run.keys, "7", "now")
        for nonsense in ("latest", "-1", "1.5", ""):
            with pytest.raises(SettingsError, match="names no plan"):
                await diff(run.client, run.keys, nonsense, "now")
        await run.client.delete(run.keys.plan(1))
        with pytest.raises(ConfigError, match="plan 1 of run gpt-a is no longer kept"):
            await diff(run.client, run.keys, "1", "now")

    told(etcd, namespace, story)


# -- rollback ------------------------------------------------------------------------------------------------------


def test_a_rollback_wants_again_what_the_plan_and_all_later_ones_changed(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        await change(run, 10, clip=2.0)
        await change(run, 20, lr=0.5)
        await change(run, 30, lr=0.25, sched="cosine")
        done = await rollback(run.client, run.keys, "2", author="bob", reason="it diverged")
        assert done.plan == 2
        assert done.written.values == {"lr": START["lr"], "sched": "linear"}
        assert done.written.reason == "rollback of plan 2: it diverged"
        listing = await run.client.range(run.keys.config)
        revisions = {kv.key.removeprefix(run.keys.config): kv.mod_revision for kv in listing.kvs}
        assert revisions["lr"] == revisions["sched"] == done.written.revision != revisions["clip"]
        await run.open(done.written.revision, done.written.values, gate=40)
        await run.commit(done.written.values, done.written.revision, gate=40)
        await run.receipt(step=40)
        assert (await wait(run.client, run.keys, done.written, 10)).holds
        assert (await diff(run.client, run.keys, "1", "now")).changes == ()
        assert (await history(run.client, run.keys)).entries[0].outcome == "applied"

    told(etcd, namespace, story)


def test_a_rollback_takes_back_the_newest_change_and_can_be_taken_back_itself(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        await change(run, 10, lr=0.5)
        await change(run, 20, lr=0.25)
        first = await rollback(run.client, run.keys)
        assert (first.plan, first.written.values) == (2, {"lr": 0.5})
        await run.open(first.written.revision, first.written.values, gate=30)
        await run.commit(first.written.values, first.written.revision, gate=30)
        second = await rollback(run.client, run.keys)
        assert (second.plan, second.written.values) == (3, {"lr": 0.25})

    told(etcd, namespace, story)


def test_a_rollback_also_ends_a_change_that_still_waits(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        await change(run, 10, lr=0.5)
        await set_values(run.client, run.keys, {"clip": "7"})
        await run.reject("note", "7", await run.client.put(run.keys.config_of("note"), "7"), "no text")
        done = await rollback(run.client, run.keys)
        assert done.written.values == {"lr": START["lr"], "clip": 1.0}

    told(etcd, namespace, story)


def test_a_rollback_reaches_over_a_restart(etcd: EtcdServer, namespace: str) -> None:
    """Before plan 1 the lr was that of the first start; the restart brought another clip, too."""

    async def story(run: RunInEtcd) -> None:
        await change(run, 10, lr=0.5)
        await begin(run, step=15, clip=3.0)
        assert (await rollback(run.client, run.keys, "1")).written.values == {"lr": START["lr"], "clip": 1.0}

    told(etcd, namespace, story)


def test_what_cannot_be_taken_back_is_refused_and_nothing_is_written(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        client, keys = run.client, run.keys
        with pytest.raises(ConfigError, match="nothing to roll back: no change of run gpt-a is known"):
            await rollback(client, keys)
        await change(run, 10, lr=0.5)
        await change(run, 20, lr=START["lr"] or 0)
        before = await standing(run)
        with pytest.raises(
            ConfigError, match="nothing to roll back: every value of run gpt-a is as it was before plan 1"
        ):
            await rollback(client, keys, "1")
        with pytest.raises(ConfigError, match="has no plan 9: its newest is 2"):
            await rollback(client, keys, "9")
        plan = await client.get(keys.plan(2))
        assert plan is not None
        await client.put(keys.plan(3), plan.text.replace('"number":2', '"number":3').replace('"config"', '"pause"'))
        await client.put(keys.decision(3), '{"commit":true}')
        with pytest.raises(ConfigError, match="plan 3 of run gpt-a is a pause: it changed no value"):
            await rollback(client, keys, "3")
        schema = await client.get(keys.schema)
        assert schema is not None
        await client.put(keys.schema, schema.text.replace('"maximum": 1', '"maximum": 0.0001'))
        with pytest.raises(ConfigError, match=r"nothing was written: lr: 0\.5: input should be less than"):
            await rollback(client, keys, "2")
        assert await standing(run) == before
        with pytest.raises(RunNotFound):
            await rollback(client, Keys(keys.namespace, "gpt-b"))
        with pytest.raises(SettingsError, match="1000 is the most"):
            await rollback(client, keys, "1", reason="x" * 2000)

    told(etcd, namespace, story)


def test_a_value_that_came_up_with_the_plan_cannot_be_taken_away(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        await run.client.put(run.keys.schema, "null")
        await change(run, 10, decay=0.5)
        with pytest.raises(ConfigError, match="decay: it had no value before plan 1, and a value cannot be removed"):
            await rollback(run.client, run.keys)

    told(etcd, namespace, story)


def test_a_run_that_replays_takes_neither_changes_nor_rollbacks(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        await change(run, 10, lr=0.5)
        schema = await run.client.get(run.keys.schema)
        assert schema is not None
        await run.client.put(run.keys.schema, schema.text.replace("{", '{"x-instep-replay": "abc", ', 1))
        with pytest.raises(ConfigError, match="lr: the run replays a schedule"):
            await set_values(run.client, run.keys, {"lr": "0.5"})
        with pytest.raises(ConfigError, match="the run replays a schedule"):
            await rollback(run.client, run.keys)
        with pytest.raises(ConfigError, match="replays a schedule: its file"):
            await diff(run.client, run.keys, "1", "now")

    told(etcd, namespace, story)


# -- the schedule --------------------------------------------------------------------------------------------------


def test_the_schedule_is_what_the_run_was_trained_with(etcd: EtcdServer, namespace: str) -> None:
    async def story(run: RunInEtcd) -> None:
        await change(run, 10, lr=0.5)
        await change(run, 20, lr=0.25)
        await begin(run, step=15, clip=3.0)
        found = (await schedule(run.client, run.keys)).to_json()
        assert (found["instep_schedule"], found["run"], found["values"]) == (1, "gpt-a", START)
        assert [(item["step"], item["values"]) for item in found["changes"]] == [
            (10, {"lr": 0.5}),
            (15, {"lr": 0.25, "clip": 3.0}),
        ]
        assert (found["changes"][0]["author"], found["changes"][0]["reason"]) == ("ann@host", "loss spike")

    told(etcd, namespace, story)


def test_a_run_that_is_still_to_come_has_no_schedule(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        with pytest.raises(RunNotFound):
            await schedule(client, keys)
        await set_values(client, keys, {"lr": "1"}, create=True)
        with pytest.raises(ConfigError, match="has not started yet"):
            await schedule(client, keys)
        with pytest.raises(ConfigError, match="has not started yet"):
            await diff(client, keys, "start", "now")

    with_client(etcd, work)
