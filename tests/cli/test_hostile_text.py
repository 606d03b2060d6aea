"""Text that somebody wrote to etcd reaches no terminal, log or error message as anything but text on one line."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from command import COMMAND, environment
from run_in_etcd import RunInEtcd, with_client

from instep.cli._app import run as run_command_line
from instep.control import Keys
from instep.errors import CommandRefused, JoinRefused
from instep.etcd import Client
from instep.protocol.records import (
    Attempts,
    Command,
    Declined,
    Directive,
    Leader,
    RankFailure,
    Rejected,
    StartChange,
    StartOfView,
    Term,
)
from instep.rendezvous.records import Closed, Limits, Refusal, Registration, Round, Seat
from instep.testing import EtcdServer
from instep.text import one_line

HOSTILE = "h\x1b[31mRED\x1b]0;pwned\x07\x9b2J\u202egnp\u2066\nforged line\r[bold]b[/bold]\x00\u2028\x7f\u200b"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]")

COMMANDS = [
    ["runs"],
    ["status", "gpt-a"],
    ["get", "gpt-a"],
    ["get", "gpt-a", "note"],
    ["get", "gpt-a", HOSTILE],
    ["set", "gpt-a", f"note={HOSTILE}", "--why", HOSTILE, "--author", HOSTILE, "--no-wait"],
    ["set", "gpt-a", f"{HOSTILE}=1"],
    ["history", "gpt-a"],
    ["history", "gpt-a", "--export", "-"],
    ["diff", "gpt-a", "start", "now"],
    ["diff", "gpt-a", "1", "now"],
    ["rollback", "gpt-a", "1"],
    ["pause", "gpt-a"],
    ["stop", "gpt-a", "--node", HOSTILE],
    ["act", "gpt-a"],
    ["act", "gpt-a", "evaluat"],
    ["restore", "gpt-a", HOSTILE],
    ["checkpoints", "gpt-a"],
    ["adopt", "gpt-a", "/nowhere"],
    ["forget", "gpt-a"],
    ["forget", "gpt-a", HOSTILE],
    ["delete", "gpt-a", "--yes"],
    ["reset", "gpt-a"],
    ["status", HOSTILE],
]


async def _hostile_run(client: Client, namespace: str) -> None:
    """A run in which every text that a record may hold is hostile."""
    run = RunInEtcd(client, Keys(namespace, "gpt-a"))
    keys = run.keys
    run.nodes["evil"] = (4, 5)
    await run.join(values={"note": HOSTILE})
    for rank, node in ((0, "node-0"), (4, "evil")):
        member = (await client.range(f"{keys.members}{rank}/")).kvs[0]
        await client.put(member.key, member.text.replace(f'"{node.replace("node", "host")}"', _quoted()))
    await run.report(0, 12, actions=("evaluate", HOSTILE), **{HOSTILE: 1.5})
    leader = Leader(node="node-0", rank=0, incarnation="10000", candidate="c", token=7, host=HOSTILE)
    await client.put(keys.leader, leader.encode())
    manifest = replace(await run.save(12), path=HOSTILE, host=HOSTILE)
    await client.put(keys.checkpoint(manifest.id), manifest.encode())
    command = Command(kind="pause", author=HOSTILE, reason=HOSTILE)
    await client.put(keys.command("waits"), command.encode())
    declined = Declined(command=command, revision=1, why=HOSTILE)
    await client.put(keys.declined_of("gone"), declined.encode())
    await client.put(keys.config_of(f"x{HOSTILE.replace(chr(0), '')}"), "1")
    await client.put(keys.config_of("sched"), f'"{HOSTILE!r}"')
    revision = await client.put(keys.config_of("lr"), "7")
    rejected = Rejected(name="lr", value=HOSTILE, revision=revision, reason=HOSTILE, author=HOSTILE, why=HOSTILE)
    await client.put(keys.rejected_of("lr"), rejected.encode())
    change = StartChange(revision=2, names=("note",), previous={"note": HOSTILE}, author=HOSTILE, reason=HOSTILE)
    start = StartOfView(view=1, values={**run.values, HOSTILE: HOSTILE}, changes=(change,))
    await client.put(keys.start_of(1), start.encode())
    failure = RankFailure(view=1, rank=0, host=HOSTILE, cause=HOSTILE, text=HOSTILE)
    await client.put(keys.attempts, Attempts(view=1, counts={HOSTILE: 1}, failures=(failure,)).encode())
    for number in (1, 2):
        term = Term(term=number, node="node-0", rank=0, host=HOSTILE, token=7, at=HOSTILE, why=HOSTILE)
        await client.put(keys.term(number), term.encode())
    run.directive = Directive(paused_at=20, ends_at=30, reason=HOSTILE)
    for _ in range(2):
        await run.open(revision, {"note": HOSTILE, HOSTILE: HOSTILE})
        await run.abort(HOSTILE)
    plan = await client.get(keys.plan(2))
    assert plan is not None
    await client.put(keys.plan(2), plan.text.replace('"ann@host"', _quoted()).replace('"loss spike"', _quoted()))
    rendezvous = f"{keys.root}rendezvous/"
    limits = Limits(min_nodes=1, max_nodes=2)
    seat = Seat(node="n", host=HOSTILE, pid=1)
    await client.put(f"{rendezvous}state/round", Round(epoch=2, number=1, limits=limits, seats=(seat,)).encode())
    await client.put(f"{rendezvous}state/refused/m", Refusal(reason=HOSTILE).encode())
    asking = Registration(epoch=2, host=HOSTILE, pid=1, limits=limits, asks=True)
    await client.put(f"{rendezvous}nodes/o", asking.encode())
    await client.put(f"{rendezvous}state/closed", Closed(epoch=1, by=HOSTILE).encode())


def _quoted() -> str:
    return json.dumps(HOSTILE)


Say = Callable[..., tuple[str, str]]


@pytest.fixture
def say(etcd: EtcdServer, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs the command line in this process; returns what it has printed."""
    with_client(etcd, lambda client: _hostile_run(client, namespace))
    for name, value in {**etcd.environment(), "INSTEP_NAMESPACE": namespace}.items():
        monkeypatch.setenv(name, value)

    def said(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["instep", *arguments])
        with suppress(SystemExit):
            run_command_line()
        printed = capsys.readouterr()
        return printed.out, printed.err

    return said


def test_no_command_prints_what_a_terminal_would_obey(say: Say) -> None:
    quoted = ""
    for arguments in COMMANDS:
        for json_too in ([], ["--json"]):
            out, err = say(*arguments, *json_too)
            assert RAW.findall(out + err) == [], (arguments, json_too)
            assert not re.search("(?m)^forged", out + err), (arguments, json_too)
            assert "Traceback" not in err
            if json_too and out:
                json.loads(out)
            quoted += out + err
    assert quoted.count("[bold]b[/bold]") > 40  # it was shown, as it is


def test_a_json_document_holds_the_text_as_it_is(say: Say) -> None:
    document = json.loads(say("status", "gpt-a", "--json")[0])
    assert document["leader"]["host"] == HOSTILE
    assert document["checkpoint"]["path"] == HOSTILE
    assert document["steps"]["metrics"] == {HOSTILE: 1.5}


def test_a_terminal_gets_no_control_characters_either(say: Say, etcd: EtcdServer, namespace: str) -> None:
    env = environment(etcd.environment(), INSTEP_NAMESPACE=namespace, TERM="dumb", NO_COLOR="1", COLUMNS="200")
    leader, follower = pty.openpty()
    with subprocess.Popen([*COMMAND, "status", "gpt-a"], stdout=follower, stderr=follower, stdin=follower, env=env):
        os.close(follower)
        printed = b""
        while True:
            try:
                printed += os.read(leader, 65536)
            except OSError:
                break
    os.close(leader)
    assert RAW.findall(printed.decode().replace("\r\n", "\n")) == []


def test_a_log_record_is_one_line_whatever_it_quotes(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("instep")
    log.warning("paused by %s: %d", HOSTILE, 7)
    log.warning("x" * 10_000)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("failed")
    texts = [logging.Formatter().format(record) for record in caplog.records]
    assert texts[0] == f"paused by {one_line(HOSTILE)}: 7"
    assert len(texts[1]) == 4000
    assert texts[2].splitlines()[0] == "failed"
    assert all(line.startswith("  ") for line in texts[2].splitlines()[1:])
    assert RAW.findall("".join(texts)) == []


def test_all_of_our_log_records_pass_the_logger_that_cleans_them() -> None:
    source = Path(sys.modules["instep"].__file__ or "").parent
    loggers = {name for path in source.rglob("*.py") for name in re.findall(r"getLogger\((.*?)\)", path.read_text())}
    assert loggers == {'"instep"', ""}  # the root logger is only looked at


@pytest.mark.parametrize("error", [JoinRefused(HOSTILE), CommandRefused(HOSTILE)])
def test_the_text_of_an_error_is_one_line(error: Exception) -> None:
    assert str(error) == one_line(HOSTILE)
    assert RAW.findall(str(error)) == []
