"""What the commands print, and their exit codes, against a real etcd."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from command import COMMAND, TIMEOUT_S, environment, instep
from run_in_etcd import RunInEtcd, with_client

from instep.control import Keys
from instep.etcd import Client
from instep.testing import EtcdServer

Story = Callable[[RunInEtcd], Awaitable[None]]


@pytest.fixture
def env(etcd: EtcdServer, namespace: str) -> dict[str, str]:
    return environment(etcd.environment(), INSTEP_NAMESPACE=namespace)


def _write(etcd: EtcdServer, namespace: str, story: Story, *, join: bool = True) -> None:
    """Lets a story happen to run gpt-a."""

    async def work(client: Client) -> None:
        run = RunInEtcd(client, Keys(namespace, "gpt-a"))
        if join:
            await run.join()
        else:
            run.view = 1
        await story(run)

    with_client(etcd, work)


async def _nothing(run: RunInEtcd) -> None:
    await run.report(0, 12, loss=0.25)


async def _changed(run: RunInEtcd) -> None:
    revision = await run.client.put(run.keys.config_of("lr"), "0.0001")
    await run.open(revision, {"lr": 1e-4}, gate=20)
    await run.ack()
    await run.commit({"lr": 1e-4}, revision, gate=20)
    await run.receipt(step=20)


def test_help_needs_no_etcd_and_no_grpc(env: dict[str, str]) -> None:
    code = """
import sys
from instep.cli import main
sys.argv = ["instep", "--help"]
try:
    main()
except SystemExit:
    pass
assert not {"grpc", "torch"} & set(sys.modules)
"""
    done = subprocess.run([COMMAND[0], "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "local", "runs", "status", "get", "set", "history"):
        assert command in done.stdout


def test_help_names_no_types_of_flags_and_is_readable_at_80_columns(env: dict[str, str]) -> None:
    ended = instep("set", "--help", env={**env, "COLUMNS": "80"})
    assert ended.code == 0
    assert "<bool>" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_version_is_one_line(env: dict[str, str]) -> None:
    ended = instep("--version", env=env)
    assert (ended.code, ended.out.split()[0], ended.err) == (0, "instep", "")


def test_runs_are_listed(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    none = instep("runs", env=env)
    assert (none.code, none.out) == (0, "")
    assert "no run" in none.err
    _write(etcd, namespace, _nothing)
    ended = instep("runs", env=env)
    assert ended.out.splitlines()[1].split() == ["gpt-a", "training", "4", "12", "1", "rank", "0", "on", "host-0"]
    assert instep("runs", "--json", env=env).json["runs"][0]["state"] == "training"


def test_a_status_is_a_page_or_a_document(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _changed)
    ended = instep("status", "gpt-a", env=env)
    assert (ended.code, ended.err) == (0, "")
    assert "\x1b" not in ended.out
    assert not any(line.endswith(" ") for line in ended.out.splitlines())
    for part in ("gpt-a  training", "rank 0 on host-0", "0-3 alive", "applied at step 20", "lr 3e-4 → 1e-4"):
        assert part in ended.out
    document = instep("status", "gpt-a", "--json", env=env).json
    assert document["recent"][0]["step"] == 20
    assert document["ranks"]["alive"] == "0-3"


def test_get_prints_one_value_for_scripts(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _changed)
    assert instep("get", "gpt-a", "lr", env=env).out == "0.0001\n"
    assert instep("get", "gpt-a", "sched", env=env).out == '"linear"\n'
    values = {value["name"]: value for value in instep("get", "gpt-a", "--json", env=env).json["values"]}
    assert values["lr"]["agreed"] == 1e-4
    assert values["dropout"]["fixed"] is True
    assert "fixed" in instep("get", "gpt-a", env=env).out


def test_history_tells_who_and_why(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _changed)
    ended = instep("history", "gpt-a", env=env)
    for part in ("#1", "applied at step 20", "lr 3e-4 → 1e-4", "ann@host “loss spike”"):
        assert part in ended.out
    assert instep("history", "gpt-a", "--json", "--limit", "1", env=env).json["entries"][0]["gate"] == 20


def test_set_writes_and_tells_how_to_follow(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _nothing)
    ended = instep("set", "gpt-a", "lr=1e-4", "sched=cosine", "--why", "loss spike", env=env)
    assert ended.code == 0
    assert ended.out.startswith("lr 3e-4 → 1e-4, sched linear → cosine: requested at revision ")
    assert "instep status gpt-a --watch" in ended.err
    assert etcd.etcdctl("get", "--print-value-only", f"{namespace}/gpt-a/config/sched") == '"cosine"'


@contextmanager
def _waiting(*arguments: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, "set", "gpt-a", "lr=1e-4", "--wait", *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def _applied(run: RunInEtcd) -> None:
    await run.apply("lr", 1e-4, gate=12341)


def test_set_wait_ends_with_the_receipt(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _nothing)
    with _waiting(env=env) as process:
        _write(etcd, namespace, _applied, join=False)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert out.startswith("lr 3e-4 → 1e-4: requested, armed on 4/4 ranks, applied at step 12341 on 4/4, ")
    assert out.count("\n") == 1


def test_set_wait_json_is_one_document(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _nothing)
    with _waiting("--json", env=env) as process:
        _write(etcd, namespace, _applied, join=False)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    document = json.loads(out)
    assert (document["outcome"], document["error"]) == ("applied", None)
    assert document["receipt"]["step"] == 12341
    assert document["written"]["changes"] == [{"name": "lr", "before": 3e-4, "after": 1e-4, "was_set": True}]


def test_set_wait_exits_5_when_the_run_refuses(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    async def refuse(run: RunInEtcd) -> None:
        await run.reject("lr", "1e-4", await run.desired("lr"), "not today")

    _write(etcd, namespace, _nothing)
    with _waiting("--json", env=env) as process:
        _write(etcd, namespace, refuse, join=False)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 5
    assert "instep: lr 3e-4 → 1e-4: rejected by the run" in err
    assert json.loads(out)["outcome"] == "rejected"


def test_set_wait_exits_11_when_time_is_up(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _nothing)
    ended = instep("set", "gpt-a", "lr=1e-4", "--wait", "--timeout", "0.5", env=env)
    assert (ended.code, ended.out) == (11, "")
    assert "not applied everywhere within 0.5 s" in ended.err


def test_ctrl_c_exits_130(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _nothing)
    with _waiting(env=env) as process:
        assert process.stderr is not None
        process.stderr.readline()  # it waits
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_a_watched_status_prints_a_document_a_change(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _nothing)
    command = [*COMMAND, "status", "gpt-a", "--watch", "--json"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())["plan"] is None
            _write(etcd, namespace, _changed, join=False)
            while not json.loads(process.stdout.readline())["recent"]:
                pass
        finally:
            process.kill()


def test_on_a_terminal_the_status_is_watched_until_q(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    _write(etcd, namespace, _nothing)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(COMMAND[0], [*COMMAND, "status", "gpt-a", "--watch"], {**env, "TERM": "xterm", "COLUMNS": "60"})
    try:
        seen = _read_until(terminal, b"q leaves")
        assert b"training" in seen
        os.write(terminal, b"q")
        _read_until(terminal, None)
    finally:
        os.close(terminal)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def _read_until(terminal: int, mark: bytes | None) -> bytes:
    """What the terminal shows up to `mark`, or to its end."""
    seen, deadline = b"", time.monotonic() + TIMEOUT_S
    while mark is None or mark not in seen:
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, seen
        try:
            part = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end of a terminal is closed
            part = b""
        if not part:
            assert mark is None, seen
            break
        seen += part
    return seen


@pytest.mark.parametrize(("more", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_is_for_terminals_that_want_it(
    etcd: EtcdServer, namespace: str, env: dict[str, str], more: dict[str, str], coloured: bool
) -> None:
    _write(etcd, namespace, _nothing)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(COMMAND[0], [*COMMAND, "runs"], {**env, "TERM": "xterm", **more})
    try:
        seen = _read_until(terminal, None)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    assert b"gpt-a" in seen
    assert (b"\x1b[32m" in seen) is coloured


def test_delete_needs_a_yes_and_a_run_that_has_ended(etcd: EtcdServer, namespace: str, env: dict[str, str]) -> None:
    async def ends(run: RunInEtcd) -> None:
        await run.leave()
        await run.die()

    _write(etcd, namespace, _nothing)
    live = instep("delete", "gpt-a", "--yes", env=env)
    assert (live.code, "run gpt-a is live" in live.err) == (5, True)
    _write(etcd, namespace, ends, join=False)
    unasked = instep("delete", "gpt-a", env=env)
    assert (unasked.code, "give --yes" in unasked.err) == (2, True)
    assert instep("delete", "gpt-a", "-y", "--json", env=env).json["keys"] > 5
    assert instep("status", "gpt-a", env=env).code == 6
