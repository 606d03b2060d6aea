"""Thousands of keys, or very large ones, written by a user: changes, and above all a stop, are still agreed on."""

from __future__ import annotations

import json

from instep.agent.leader_cache import MAX_TEXT, Decoded, _read_change
from instep.etcd import KeyValue
from instep.protocol.actions import DeclineCommands, OpenPlan, RefuseWorkers, RejectValues
from instep.protocol.commands import MAX_DOCUMENT_BYTES, MAX_WAITING, PendingCommand
from instep.protocol.desired import MAX_UNKNOWN, REJECTED_AT_ONCE, DesiredValue, considered
from instep.protocol.keys import Keys
from instep.protocol.leading import next_action
from instep.protocol.records import Refused
from instep.protocol.transactions import MAX_DECLINED, SeenRevisions, for_action
from instep.recipes.fence import Fence
from unit.test_leading import now

KEYS = Keys("/training", "gpt-a")


def order(kind: str, revision: int) -> PendingCommand:
    return PendingCommand.read(f"id-{revision}", revision, json.dumps({"kind": kind}).encode())


def item(key: str, value: str, revision: int) -> KeyValue:
    return KeyValue(key, value.encode(), revision, revision, 1, 0)


def test_a_command_that_is_too_large_is_declined_with_its_size() -> None:
    large = PendingCommand.read("c1", 5, json.dumps({"kind": "pause", "reason": "r" * 700_000}).encode())
    action = next_action(now(pending_commands=(large, order("pause", 9))))
    assert isinstance(action, DeclineCommands)
    ((name, declined),) = action.declined
    assert name == "c1"
    assert str(MAX_DOCUMENT_BYTES) in declined.why
    assert len(declined.encode()) < 1000


def test_of_many_commands_the_first_wait_and_the_rest_are_declined_in_batches() -> None:
    orders = [order("checkpoint", revision) for revision in range(2000)]
    rounds = 0
    while isinstance(action := next_action(now(pending_commands=tuple(orders))), DeclineCommands):
        gone = {name for name, _ in action.declined[:MAX_DECLINED]}
        orders = [one for one in orders if one.id not in gone]
        rounds += 1
    assert rounds <= 2000 / MAX_DECLINED
    assert [one.revision for one in orders] == list(range(MAX_WAITING))
    assert isinstance(action, OpenPlan)
    assert action.plan.change_id == "id-0"


def test_a_stop_is_carried_out_before_waiting_commands() -> None:
    crowd = (PendingCommand("junk", 1, None), *(order("checkpoint", revision) for revision in range(2, 2000)))
    action = next_action(
        now(pending_commands=(*crowd, order("stop", 5000)), desired={"lr": DesiredValue("lr", "0.5", 3)})
    )
    assert isinstance(action, OpenPlan)
    assert action.plan.kind == "stop"


def test_a_change_is_planned_despite_20_000_unknown_names() -> None:
    junk = [DesiredValue(f"junk{number}", "1", number) for number in range(20_000)]
    desired = considered([*junk, DesiredValue("lr", "0.5", 30_000)], {"lr", "clip"})
    assert len(desired) == MAX_UNKNOWN + 1
    rejected, rounds = {}, 0
    while isinstance(action := next_action(now(desired=desired, rejected=rejected)), RejectValues):
        assert len(action.rejections) <= 2 * REJECTED_AT_ONCE
        rejected |= {one.name: one for one in action.rejections}
        rounds += 1
    assert rounds <= MAX_UNKNOWN / REJECTED_AT_ONCE
    assert isinstance(action, OpenPlan)
    assert action.plan.values == {"lr": 0.5}


def test_a_misspelled_name_is_rejected_among_many_unknown_ones() -> None:
    junk = [DesiredValue(f"junk{number}", "1", number) for number in range(20_000)]
    assert "lrr" in considered([*junk, DesiredValue("lrr", "0.5", 30_000)], {"lr"})


def test_the_texts_of_a_change_are_shortened_and_unreadable_ones_deleted() -> None:
    long = _read_change(item("/t/r/changes/c1", json.dumps({"id": "x", "names": [], "reason": "r" * 10**6}), 7))
    assert long.id == "c1"
    assert long.reason == "r" * MAX_TEXT
    assert _read_change(item("/t/r/changes/c2", "[" * 100_000, 8)).id == "c2"


def test_each_item_is_decoded_once() -> None:
    decoded: list[int] = []
    cache = Decoded(lambda found: decoded.append(found.mod_revision))
    items = [item("a", "1", 1), item("b", "1", 2)]
    cache.read(items)
    cache.read([*items[:1], item("b", "2", 3)])
    assert decoded == [1, 2, 3]


def test_many_mismatched_workers_are_refused_in_batches() -> None:
    """etcd takes 128 operations in a txn; a script of 200 ranks under the name of a run needs more."""
    crowd = tuple(Refused(incarnation=f"{rank:032d}", rank=rank, reason="no") for rank in range(200))
    assert len(for_action(RefuseWorkers(crowd), KEYS, Fence(KEYS.candidate("aaaaa"), 2), SeenRevisions()).then) <= 128
