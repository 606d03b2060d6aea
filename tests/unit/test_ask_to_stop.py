"""What a node writes when one of its ranks is preempted, and when it writes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from instep.etcd import Compare, Op
from instep.protocol.keys import Keys
from instep.protocol.preemption import KnownRun, ask_to_stop, command_id
from instep.protocol.records import Agreed, Command, Decision, Directive, Plan
from unit.parts import plan

KEYS = Keys("/training", "gpt-a")
AGREED = Agreed(plan=3, view=1, values={}, began=2)


def a_plan(kind: str) -> Plan:
    return replace(plan(4), kind=kind)


def test_the_stop_is_written_once_and_only_for_the_intended_workers() -> None:
    command = Command(kind="stop", author="rank 3 on host", reason="SIGTERM")
    txn = ask_to_stop(KEYS, KnownRun(7, AGREED, 9), command)
    key = "/training/gpt-a/commands/sigterm-2"
    assert txn.then == (Op.put(key, command.encode()),)
    assert txn.compares == (
        Compare.absent(key),
        Compare.mod_revision(KEYS.view, "==", 7),
        Compare.mod_revision(KEYS.agreed, "==", 9),
    )


def test_all_nodes_use_one_key_until_the_next_fresh_start() -> None:
    assert command_id(AGREED) == command_id(replace(AGREED, plan=8, view=2))
    assert command_id(AGREED) != command_id(replace(AGREED, began=3))


@pytest.mark.parametrize(
    ("known", "stopping"),
    [
        (KnownRun(7, AGREED, 9), False),
        (KnownRun(7, replace(AGREED, directive=Directive(ends_at=20)), 9), True),
        (KnownRun(7, replace(AGREED, directive=Directive(paused_at=20)), 9), False),
        (KnownRun(7, AGREED, 9, a_plan("stop")), True),
        (KnownRun(7, AGREED, 9, a_plan("stop"), Decision(commit=False)), False),
        (KnownRun(7, AGREED, 9, a_plan("pause")), False),
    ],
)
def test_an_agreed_or_proposed_stop_is_not_requested_again(known: KnownRun, stopping: bool) -> None:
    assert known.is_stopping is stopping
