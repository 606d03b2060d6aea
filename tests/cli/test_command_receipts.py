"""What `pause`, `stop`, `checkpoint` and their like print, and their exit codes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Awaitable, Callable

import pytest
from command import COMMAND, TIMEOUT_S, Ended, environment, instep
from run_in_etcd import RunInEtcd, with_client

from instep.control import Keys
from instep.etcd import Client
from instep.testing import EtcdServer

Story = Callable[[RunInEtcd], Awaitable[None]]


@pytest.fixture
def env(etcd: EtcdServer, namespace: str) -> dict[str, str]:
    """Of a run that lives."""

    async def work(client: Client) -> None:
        await RunInEtcd(client, Keys(namespace, "gpt-a")).join()

    with_client(etcd, work)
    return environment(etcd.environment(), INSTEP_NAMESPACE=namespace)


def _meanwhile(etcd: EtcdServer, namespace: str, story: Story, *arguments: str, env: dict[str, str]) -> Ended:
    """A command that waits, while the story happens to run gpt-a."""

    async def work(client: Client) -> None:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        run.view = 1
        await story(run)

    with subprocess.Popen(
        [*COMMAND, *arguments, "--wait"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            with_client(etcd, work)
            out, err = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    return Ended(process.returncode, out, err)


def test_without_waiting_it_is_told_how_to_follow(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    ended = instep("stop", "gpt-a", "--no-save", "--why", "enough", env=env)
    assert ended.code == 0
    assert ended.out.startswith("stop without a save: requested at revision ")
    assert "instep status gpt-a --watch" in ended.err
    page = instep("status", "gpt-a", env=env).out
    assert "commands that wait\n  stop without a save  " in page
    assert "“enough”" in page


def test_a_receipt_is_one_line_and_then_history(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    async def story(run: RunInEtcd) -> None:
        await run.carry_out(gate=812)

    ended = _meanwhile(etcd, namespace, story, "pause", "gpt-a", "--author", "ann", "--why", "look", env=env)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("pause: requested, armed on 4/4 ranks, paused before step 812 on 4/4, ")
    assert ended.out.count("\n") == 1
    page = instep("history", "gpt-a", env=env).out
    for part in ("#1", "applied at step 812", "  pause  ", "ann “look”"):
        assert part in page


def test_a_declined_command_exits_5_with_its_document(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    async def story(run: RunInEtcd) -> None:
        await run.decline("evaluate: the script declares no such action")

    ended = _meanwhile(etcd, namespace, story, "act", "gpt-a", "evaluate", "--json", env=env)
    assert ended.code == 5
    document = json.loads(ended.out)
    assert (document["outcome"], document["receipt"]) == ("declined", None)
    assert document["error"] == "act evaluate: declined by the run: evaluate: the script declares no such action"
    assert (document["sent"]["kind"], document["sent"]["name"]) == ("action", "evaluate")
    assert "instep: act evaluate: declined by the run" in ended.err
    assert "declined  act evaluate" in instep("history", "gpt-a", env=env).out


def test_a_run_that_is_started_anew_first_exits_11(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    async def story(run: RunInEtcd) -> None:
        await run.ordered()
        await run.join()
        await run.client.delete(run.keys.commands, prefix=True)

    ended = _meanwhile(etcd, namespace, story, "pause", "gpt-a", env=env)
    assert (ended.code, ended.out) == (11, "pause: not done, the run was restarted first\n")


def test_checkpoints_are_listed_for_people_and_scripts(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    none = instep("checkpoints", "gpt-a", env=env)
    assert (none.code, none.out, none.err) == (0, "", "run gpt-a has no committed checkpoint\n")

    async def work(client: Client) -> None:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        await run.save(100)
        await run.save(200)

    with_client(etcd, work)
    rows = [line.split() for line in instep("checkpoints", "gpt-a", env=env).out.splitlines()]
    assert [row[0] for row in rows] == ["checkpoint", "200-7", "100-7"]
    assert rows[1][1:8] == ["200", "1.2", "GB", "rank", "3", "on", "host-1"]
    assert (rows[1][-1], rows[2][-1]) == ("latest", "/saved/step-100-7")
    first = instep("checkpoints", "gpt-a", "--json", env=env).json["checkpoints"][0]
    assert {"step", "path", "saved_by", "token", "committed_at"} <= first.keys()


def test_no_declared_action_is_told_with_the_cure(env: dict[str, str]) -> None:
    ended = instep("act", "gpt-a", env=env)
    assert (ended.code, ended.out) == (0, "")
    assert 'declares no action: @run.action("evaluate") does' in ended.err
