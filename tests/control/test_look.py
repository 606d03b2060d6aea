"""Runs, status, values and history tell what stands in etcd."""

from __future__ import annotations

import json
import re
import urllib.request
from contextlib import aclosing

import pytest
from run_in_etcd import RunInEtcd, with_client

from instep.control import (
    HistoryReport,
    Keys,
    Runs,
    RunStatus,
    get,
    history,
    run_names,
    runs,
    set_values,
    status,
    watch_status,
)
from instep.errors import ConfigError, RunNotFound, SettingsError
from instep.etcd import Client, Op
from instep.protocol.commands import PendingCommand, declined
from instep.testing import EtcdServer


def test_every_run_is_found_whatever_else_is_there(etcd: EtcdServer, namespace: str) -> None:
    names = ["-", "A", "a", "a-b", "a.b", "a0", "aa", "b_c", "gpt-a", "gpt-a-2", "gpt-a2", "z" * 100]

    async def work(client: Client) -> tuple[str, ...]:
        for name in names:
            await client.put(f"{namespace}/{name}/config/lr", "1")
            await client.put(f"{namespace}/{name}/state/agreed", "{}")
        for stray in ("stray", "a", "has space/x", "ü/x", "~/x", "/x"):
            await client.put(f"{namespace}/{stray}", "1")
        await client.put(f"{namespace}-other/run/config/lr", "1")
        return await run_names(client, namespace)

    assert sorted(with_client(etcd, work)) == sorted(names[1:])


def test_runs_are_told_apart_by_how_they_are(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> Runs:
        live = RunInEtcd(client, Keys(namespace, "live"))
        await live.join()
        await live.report(0, 41)
        await live.report(1, 42)
        ended = RunInEtcd(client, Keys(namespace, "ended"))
        await ended.join()
        await ended.leave()
        await ended.die()
        stopped = RunInEtcd(client, Keys(namespace, "stopped"))
        await stopped.join()
        await stopped.die()
        forming = RunInEtcd(client, Keys(namespace, "forming"))
        await forming.register(0, "00000", "node-0")
        await set_values(client, Keys(namespace, "to-come"), {"lr": "1"}, create=True)
        return await runs(client, namespace)

    found = {run.name: run for run in with_client(etcd, work).runs}
    assert {name: run.state for name, run in found.items()} == {
        "live": "training",
        "ended": "ended",
        "stopped": "stopped",
        "forming": "forming",
        "to-come": "new",
    }
    live = found["live"]
    assert (live.world_size, live.step, live.leader_rank, live.leader_host) == (4, 42, 0, "host-0")


def _requests(server: EtcdServer) -> int:
    """How many reads and transactions the server has answered."""
    with urllib.request.urlopen(f"{server.endpoint}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    handled = [line for line in lines if re.match(r'grpc_server_handled_total\{.*grpc_method="(Range|Txn)"', line)]
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in handled)


def test_of_very_many_runs_the_newest_are_told_in_few_requests(etcd: EtcdServer, namespace: str) -> None:
    async def fill(client: Client) -> None:
        names = [f"run-{number:04d}" for number in range(1030)]
        for start in range(0, len(names), 100):
            await client.txn([], [Op.put(f"{namespace}/{name}/config/lr", "1") for name in names[start : start + 100]])
        large = [f"{namespace}/run-0500/reports/receipts/{number}/a" for number in range(3000)]
        for start in range(0, len(large), 100):
            await client.txn([], [Op.put(key, "1") for key in large[start : start + 100]])

    async def look(client: Client) -> Runs:
        return await runs(client, namespace)

    with_client(etcd, fill)
    before = _requests(etcd)
    found = with_client(etcd, look)
    assert _requests(etcd) - before < 110
    assert (len(found.runs), found.left_out) == (1000, 30)
    assert {run.name for run in found.runs} >= {f"run-{number:04d}" for number in range(100, 1030)}


def test_no_run_is_an_empty_list(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> Runs:
        return await runs(client, namespace)

    assert with_client(etcd, work).runs == ()


def test_a_status_tells_who_has_not_answered(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> RunStatus:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys, nodes=3)
        await run.join()
        await run.leave("node-2")
        for rank in range(4):
            await run.report(rank, 12 if rank < 3 else 11, loss=0.5)
        await client.delete(f"{keys.members}1/", prefix=True)
        written = await set_values(client, keys, {"lr": "1e-4"})
        await run.open(written.revision, {"lr": 1e-4})
        await run.ack("node-1")
        return await status(client, keys)

    now = with_client(etcd, work)
    assert (now.ranks.alive, now.ranks.missing, now.ranks.left) == ("0,2-3", "1", "4-5")
    assert now.leader is not None
    assert (now.leader.rank, now.leader.host, now.leader.token) == (0, "host-0", 7)
    assert now.steps is not None
    assert [(group.step, group.ranks) for group in now.steps.groups] == [(12, "0-2"), (11, "3")]
    assert now.plan is not None
    assert (now.plan.state, now.plan.armed, now.plan.ranks) == ("open", 2, 4)
    assert [(node.host, node.ranks) for node in now.plan.waiting] == [("host-0", "0-1")]
    lr = next(value for value in now.values if value.name == "lr")
    assert (lr.state, lr.agreed, lr.desired, lr.why) == ("pending", 3e-4, 1e-4, "plan 1 is open for step 100")
    json.dumps(now.to_json())


def test_a_status_says_why_a_desired_value_is_not_the_agreed_one(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> dict[str, str | None]:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        revision = await client.put(keys.config_of("lr"), "nonsense")
        await run.reject("lr", "nonsense", revision, "it is not JSON")
        await client.put(keys.config_of("clip"), "0.5")
        first = {value.name: value.why for value in (await get(client, keys)).values}
        await client.delete(f"{keys.members}1/", prefix=True)
        second = {value.name: value.why for value in (await get(client, keys)).values}
        await run.die()
        third = {value.name: value.why for value in (await get(client, keys)).values}
        return {"rejected": first["lr"], "waits": first["clip"], "missing": second["clip"], "dead": third["clip"]}

    assert with_client(etcd, work) == {
        "rejected": "it is not JSON",
        "waits": "it waits for the run's leader to plan it",
        "missing": "it waits for rank 1, which is missing",
        "dead": "no worker is alive; the next start of the run uses it",
    }


def test_a_key_that_names_no_hyperparameter_is_not_said_to_wait(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> dict[str, str | None]:
        keys = Keys(namespace, "gpt-a")
        await RunInEtcd(client, keys).join()
        await client.put(keys.config_of(""), "1")
        await client.put(keys.config_of("a name"), "1")
        values = (await get(client, keys)).values
        return {value.name: value.why for value in values if value.state == "rejected"}

    why = "no hyperparameter can have this name, so the run ignores the key: delete it"
    assert with_client(etcd, work) == {"": why, "a name": why}


def test_a_command_that_nobody_could_read_is_not_told_as_another_one(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> HistoryReport:
        keys = Keys(namespace, "gpt-a")
        await RunInEtcd(client, keys).join()
        pending = PendingCommand.read("c1", await client.put(keys.command("c1"), "nonsense"), b"nonsense")
        await client.put(keys.declined_of("c1"), declined(pending, pending.problem).encode())
        return await history(client, keys)

    (entry,) = with_client(etcd, work).entries
    assert (entry.outcome, entry.kind, entry.what, entry.reason) == ("declined", "unknown", "unknown command", None)


def test_a_status_of_10240_ranks_stays_small(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> RunStatus:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys, nodes=5120)
        run.register = _nothing  # type: ignore[method-assign]  # 10,240 writes add nothing to what is tested
        await run.join()
        await run.open(5, {"lr": 1e-4})
        return await status(client, keys)

    now = with_client(etcd, work)
    assert now.ranks.missing == "0-10239"
    assert now.plan is not None
    assert (len(now.plan.waiting), now.plan.waiting_more, now.plan.ranks) == (12, 5108, 10240)
    assert len(json.dumps(now.to_json())) < 10_000


async def _nothing(rank: int, incarnation: str, node: str) -> None:
    pass


def test_records_that_cannot_be_read_are_passed_over(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> RunStatus:
        keys = Keys(namespace, "gpt-a")
        for key in (keys.view, keys.agreed, keys.leader, keys.schema, keys.plan(1), keys.decision(1)):
            await client.put(key, b"\xff not JSON")
        for key in (keys.member(0, "a"), keys.metrics_of(0), keys.left_of("n"), keys.ack(1, "n"), keys.plan(2)):
            await client.put(key, "[]")
        await client.put(f"{keys.plans}x/y/z", "1")
        await client.put(keys.config_of("lr"), b"\xff")
        return await status(client, keys)

    now = with_client(etcd, work)
    assert (now.view, now.plan, now.leader, now.live) == (None, None, None, False)


def test_a_status_is_told_anew_after_a_change(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> list[int | None]:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        seen: list[int | None] = []
        async with aclosing(watch_status(client, keys, tick_s=30)) as statuses:
            async for now in statuses:
                seen.append(now.plan.number if now.plan else None)
                if now.plan is not None:
                    return seen
                await run.open(9, {"lr": 1e-4})
        raise AssertionError("the statuses ended")

    assert with_client(etcd, work) == [None, 1]


def test_what_is_not_there_is_said_to_be_missing(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> None:
        keys = Keys(namespace, "gpt-a")
        for look in (status, get, history):
            with pytest.raises(RunNotFound, match="no run exists yet"):
                await look(client, keys)
        await RunInEtcd(client, keys).join()
        with pytest.raises(ConfigError, match="did you mean dropout"):
            await get(client, keys, "dropuot")
        with pytest.raises(SettingsError):
            await get(client, keys, "no name")
        with pytest.raises(SettingsError):
            await history(client, keys, 0)

    with_client(etcd, work)


def test_history_folds_attempts_and_tells_rejections(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> tuple[HistoryReport, HistoryReport]:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        written = await set_values(client, keys, {"lr": "1e-4"})
        await run.open(written.revision, {"lr": 1e-4}, gate=10)
        await run.abort("rank 3 was already at step 11")
        await run.apply("lr", 1e-4, gate=20)
        second = await set_values(client, keys, {"clip": "0.5"})
        await run.open(second.revision, {"clip": 0.5})
        await run.abort("rank 0 could not accept it", refused={"clip": "no"})
        revision = await client.put(keys.config_of("sched"), "1")
        await run.reject("sched", "1", revision, "not one of them")
        return await history(client, keys), await history(client, keys, 1)

    whole, newest = with_client(etcd, work)
    assert [(entry.plan, entry.outcome) for entry in whole.entries] == [
        (None, "rejected"),
        (3, "rejected"),
        (2, "applied"),
    ]
    applied = whole.entries[2]
    assert (applied.step, applied.ranks, applied.author, applied.reason) == (20, 4, "ann@host", "loss spike")
    assert [(attempt.plan, attempt.gate) for attempt in applied.attempts] == [(1, 10)]
    assert newest.entries == whole.entries[:1]


def test_a_long_history_is_read_from_its_newest_end(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> HistoryReport:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        for number in range(1, 31):
            revision = await client.put(keys.config_of("clip"), str(number))
            await run.open(revision, {"clip": float(number)}, gate=number)
            if number % 10:
                await run.abort("late")
                await run.open(revision, {"clip": float(number)}, gate=number)
            await run.commit({"clip": float(number)}, revision, gate=number)
        return await history(client, keys, 5)

    assert [entry.gate for entry in with_client(etcd, work).entries] == [30, 29, 28, 27, 26]


def test_ranks_of_which_only_a_lease_is_left_are_not_called_alive(etcd: EtcdServer, namespace: str) -> None:
    async def work(client: Client) -> RunStatus:
        keys = Keys(namespace, "gpt-a")
        run = RunInEtcd(client, keys)
        await run.join()
        lease = await client.lease_grant(9)
        listing = await client.range(keys.members)
        for item in listing.kvs[2:]:  # of node-1, which is killed with its agent
            await client.put(item.key, item.text, lease=lease.id)
        while not (now := await status(client, keys)).ranks.silent:
            assert now.ranks.alive == "0-3"
        return now

    ranks = with_client(etcd, work).ranks
    assert (ranks.alive, ranks.silent, ranks.missing) == ("0-1", "2-3", "")
    assert (ranks.alive_count, ranks.silent_count) == (2, 2)
    assert 3 <= (ranks.silent_s or 0) < 9
