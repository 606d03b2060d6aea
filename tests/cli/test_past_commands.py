"""`instep diff`, `instep rollback` and `instep history --export`, as a person or a script meets them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from command import COMMAND, environment, instep
from run_in_etcd import RunInEtcd, with_client

from instep.control import Keys
from instep.etcd import Client
from instep.schedule import Schedule
from instep.testing import EtcdServer


@pytest.fixture
def env(etcd: EtcdServer, namespace: str) -> dict[str, str]:
    """A run of four ranks, in which lr was changed at step 20 and clip at step 30."""

    async def work(client: Client) -> None:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        await run.join()
        await client.put(run.keys.config_of("lr"), "0.5")
        await run.apply("lr", 0.5, gate=20)
        await client.put(run.keys.config_of("clip"), "2.0")
        await run.apply("clip", 2.0, gate=30)

    with_client(etcd, work)
    return environment(etcd.environment(), INSTEP_NAMESPACE=namespace)


def test_diff_shows_the_values_that_differ(env: dict[str, str]) -> None:
    ended = instep("diff", "gpt-a", "start", "now", env=env)
    assert (ended.code, ended.err) == (0, "")
    assert [line.split() for line in ended.out.splitlines()] == [
        ["lr", "3e-4", "→", "0.5"],
        ["clip", "1.0", "→", "2.0"],
    ]
    same = instep("diff", "gpt-a", "#2", "now", env=env)
    assert (same.code, same.out) == (0, "")
    assert "no value of run gpt-a differs" in same.err
    found = instep("diff", "gpt-a", "1", "2", "--json", env=env).json
    assert (found["before"], found["after"]) == ("1", "2")
    assert found["changes"] == [{"name": "clip", "before": 1.0, "after": 2.0, "was_set": True, "is_set": True}]


def test_rollback_writes_and_tells_how_to_follow(env: dict[str, str]) -> None:
    ended = instep("rollback", "gpt-a", "1", "--why", "it diverged", env=env)
    assert ended.code == 0, ended.err
    assert "lr 0.5 → 3e-4, clip 2.0 → 1.0: requested at revision" in ended.out
    assert "rollback of plan 1" in ended.err
    again = instep("rollback", "gpt-a", "--json", "--author", "ann", env=env).json
    assert (again["plan"], again["outcome"], again["receipt"]) == (2, None, None)
    assert again["written"]["reason"] == "rollback of plan 2"
    assert again["written"]["author"] == "ann"


def test_rollback_waits_for_its_receipt(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    with subprocess.Popen(
        [*COMMAND, "rollback", "gpt-a", "--wait"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:

        async def work(client: Client) -> None:
            run = RunInEtcd(client, Keys(namespace, "gpt-a"))
            run.view, run.plan = 1, 2
            run.values |= {"lr": 0.5, "clip": 2.0}
            key = run.keys.config_of("clip")
            async with client.watch(key, prefix=False) as watch:
                found = await client.get(key)
                assert found is not None
                if found.text == "2.0":
                    found = (await anext(watch)).events[0].kv
            await run.open(found.mod_revision, {"clip": 1.0}, gate=40)
            await run.ack()
            await run.commit({"clip": 1.0}, found.mod_revision, gate=40)
            await run.receipt(step=40)

        with_client(etcd, work)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "clip 2.0 → 1.0: requested, armed on 4/4 ranks, applied at step 40 on 4/4" in out


def test_history_exports_a_schedule_to_a_file_or_to_stdout(env: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "schedule.json"
    ended = instep("history", "gpt-a", "--export", str(file), env=env)
    assert (ended.code, ended.out) == (0, f"{file}\n"), ended.err
    assert "2 changes" in ended.err
    schedule = Schedule.decode(file.read_text())
    assert [(change.step, change.values) for change in schedule.changes] == [(20, {"lr": 0.5}), (30, {"clip": 2.0})]
    assert Schedule.decode(instep("history", "gpt-a", "--export", "-", env=env).out) == schedule
    told = instep("history", "gpt-a", "--export", str(file), "--json", env=env).json
    assert told == {"run": "gpt-a", "file": str(file), "digest": schedule.digest, "changes": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["schedule.json"]
    assert json.loads(file.read_text())["instep_schedule"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["diff", "gpt-a", "latest", "now"], 2, "'latest' names no plan"),
        (["diff", "gpt-a", "9", "now"], 5, "its newest is 2"),
        (["diff", "gpt-b", "1", "2"], 6, "did you mean 'gpt-a'?"),
        (["rollback", "gpt-a", "9"], 5, "has no plan 9"),
        (["rollback", "gpt-a", "now"], 2, "'now' names no plan"),
        (["rollback", "gpt-a", "--timeout", "0"], 2, "a timeout of"),
        (["rollback", "gpt-b"], 6, "did you mean 'gpt-a'?"),
        (["rollback", "gpt-a", "--why", "x" * 2000], 2, "1000 is the most"),
        (["history", "gpt-b", "--export", "-"], 6, "No run 'gpt-b'"),
        (
            ["history", "gpt-a", "--export", "/no/such/folder/file"],
            2,
            "folder of '/no/such/folder/file' does not exist",
        ),
        (["history", "gpt-a", "--export", "/"], 2, "cannot be written to '/'"),
    ],
)
def test_a_mistake_is_one_sentence(env: dict[str, str], arguments: list[str], code: int, said: str) -> None:
    ended = instep(*arguments, env=env)
    assert (ended.code, ended.out) == (code, ""), ended.err
    assert said in ended.err
    assert ended.err.startswith("instep: ")
    assert ended.err.count("\n") == 1
