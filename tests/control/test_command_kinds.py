"""A command is defined in one place: one definition more, and every part of Instep knows it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import typer
from run_in_etcd import TIMEOUT_S, RunInEtcd, with_client
from typer.testing import CliRunner

from instep import command_kinds
from instep.cli._app import add_commands
from instep.command_kinds import COMMAND_KINDS, CommandFields, CommandKind, Conditions, Takes
from instep.control import CommandReceipt, Keys, Sent, history, status, wait
from instep.etcd import Client
from instep.protocol.actions import DeclineCommands, OpenPlan
from instep.protocol.chain import after
from instep.protocol.commands import PendingCommand
from instep.protocol.leading import next_action
from instep.protocol.records import Command, Directive
from instep.protocol.situation import Situation, TrainingProgress
from instep.testing import EtcdServer
from instep.worker.command_handlers import CommandHandlers
from unit.parts import DIGEST, SCHEMA, agreed, plan, registered, view


def _why_no_drain(given: CommandFields, now: Conditions) -> str | None:
    return None if now.directive.paused_at is None else "the run is paused, so it is drained already"


def _drain(given: CommandFields, takes: Takes) -> Directive:
    return Directive(save_at=takes.gate, paused_at=takes.gate + 1, reason=f"drained for {given.node}")


DRAIN = CommandKind(
    name="drain",
    verb="drain",
    help="Save a checkpoint, then have all ranks wait.",
    done="drained at step {step} on {on}",
    options=("node",),
    refuses=_why_no_drain,
    sets=_drain,
    hint="'instep resume {run}' resumes it",
)


@pytest.fixture(autouse=True)
def _defined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMAND_KINDS, "drain", DRAIN)


def _instep(*arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    add_commands(app)
    ended = CliRunner().invoke(app, arguments)
    return ended.exit_code, ended.output or repr(ended.exception)


def test_the_command_line_sends_it_and_the_reports_describe_it(
    etcd: EtcdServer, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(namespace, "gpt-a")
    for name, value in {**etcd.environment(), "INSTEP_NAMESPACE": namespace}.items():
        monkeypatch.setenv(name, value)

    async def starts(client: Client) -> None:
        await RunInEtcd(client, keys).join()

    async def ends(client: Client) -> tuple[list[str], CommandReceipt, str]:
        run = RunInEtcd(client, keys)
        run.view = 1
        waiting = [command.what for command in (await status(client, keys)).commands]
        await run.carry_out(gate=1200)
        await run.save(1200)
        receipt = await wait(client, keys, Sent(**sent), TIMEOUT_S)
        return waiting, receipt, (await history(client, keys)).entries[0].what

    with_client(etcd, starts)
    assert "Save a checkpoint, then have all ranks wait." in _instep("drain", "--help")[1]
    code, printed = _instep("drain", "gpt-a", "--node", "host-1", "--why", "repair", "--json")
    assert code == 0, printed
    sent = json.loads(printed)["sent"]
    assert (sent["kind"], sent["node"], sent["reason"]) == ("drain", "node-1", "repair")
    waiting, receipt, what = with_client(etcd, ends)
    assert waiting == ["drain for node node-1"]
    assert what == "drain"
    said = (
        "drain for node node-1: requested, armed on 4/4 ranks, drained at step 1200 on 4/4, checkpoint 1200-7 saved by"
    )
    assert receipt.sentence.startswith(said)
    code, printed = _instep("drain", "gpt-a")
    assert (code, "the run is paused, so it is drained already" in printed) == (1, True)


def _situation() -> Situation:
    two = view({"a": {0: 10}, "b": {1: 11}})
    return Situation(
        view=two,
        agreed=agreed(),
        registered=(registered(0, 10, node="a"), registered(1, 11, node="b")),
        schemas={DIGEST: SCHEMA.encode()},
        schema=SCHEMA,
        progress=TrainingProgress(step=20, step_time_s=0.1, margin_steps=4),
        pending_commands=(PendingCommand("c1", 50, Command(kind="drain", node="a")),),
    )


def test_the_leader_plans_it_and_declines_it_by_its_precondition() -> None:
    now = _situation()
    action = next_action(now)
    assert isinstance(action, OpenPlan)
    assert now.agreed is not None
    then = after(now.agreed, action.plan)
    assert then.directive == Directive(save_at=24, paused_at=25, reason="drained for a")
    again = next_action(replace(now, agreed=then))
    assert isinstance(again, DeclineCommands)
    assert again.declined[0][1].why == "the run is paused, so it is drained already"


def test_a_worker_accepts_it_and_only_what_is_defined() -> None:
    assert CommandHandlers().why_not(replace(plan(), kind="drain")) == {}
    assert CommandHandlers().why_not(replace(plan(), kind="levitate")).keys() == {"levitate"}


def test_a_command_that_no_definition_names_is_unreadable() -> None:
    assert Command.decode_or_none('{"kind": "levitate"}') is None
    assert command_kinds.describe("levitate", None) == "levitate"
