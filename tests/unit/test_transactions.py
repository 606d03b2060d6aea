"""The guards: what must still be true for each action, and what it writes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from instep.etcd import Compare
from instep.protocol.actions import (
    MAX_COLLECTED,
    AbortPlan,
    AnnounceForming,
    CollectGarbage,
    CommitPlan,
    DeclineCommands,
    FormView,
    LeaderAction,
    MarkEntered,
    OfferCheckpoint,
    OpenPlan,
    RaiseEpoch,
    RefuseWorkers,
    RejectJoin,
    RejectValues,
    RewriteConfig,
    SettleEpoch,
)
from instep.protocol.barriers import ReleaseBarrier
from instep.protocol.keys import Keys
from instep.protocol.records import (
    Ack,
    Attempts,
    Command,
    Decision,
    Declined,
    Epoch,
    Forming,
    Leader,
    RankFailure,
    Refused,
    Rejected,
    Release,
    Resume,
    Term,
    WorkerId,
)
from instep.protocol.transactions import (
    ACKS_KEPT,
    HISTORY_PLANS,
    MAX_REJECTIONS,
    RECEIPTS_KEPT,
    TERMS_KEPT,
    SeenRevisions,
    Txn,
    abort,
    acknowledge,
    for_action,
    proclaim,
    write_failure,
)
from instep.recipes.fence import Fence
from unit.parts import SCHEMA, agreed, incarnation, plan, view

KEYS = Keys("/training", "gpt-a")
ROOT = "/training/gpt-a/"
FENCE = Fence(f"{ROOT}election/aaaaa", 77)
SEEN = SeenRevisions(view=41, agreed=42, pointer=43, attempts=44, resume=45, epoch=46)
TWO = view({"a": {0: 10}, "b": {1: 11}})
MAX_OPS = 128
"""etcd's limit for the operations of one txn."""

LEADS = Compare.create_revision(FENCE.key, "==", 77)
SAME_VIEW = Compare.mod_revision(f"{ROOT}state/view", "==", 41)
SAME_EPOCH = Compare.mod_revision(f"{ROOT}state/epoch", "==", 46)
SAME_AGREED = Compare.mod_revision(f"{ROOT}state/agreed", "==", 42)
SAME_ATTEMPTS = Compare.mod_revision(f"{ROOT}attempts", "==", 44)
SAME_RESUME = Compare.mod_revision(f"{ROOT}state/resume", "==", 45)
SAME_POINTER = Compare.mod_revision(f"{ROOT}checkpoints/latest", "==", 43)

TURNED_AWAY = (Refused(incarnation=incarnation(1), rank=0, reason=""),)
RELEASE = ReleaseBarrier("epoch", Release(view=1, number=3), 40, ("old",))


def undecided(number: int) -> Compare:
    return Compare.absent(f"{ROOT}state/plans/{number}/decision")


def form(*, abort_plan: int | None = None, fresh: bool = True, rejections: int = 0) -> FormView:
    items = tuple(Rejected(name=f"x{n}", value="", revision=1, reason="") for n in range(rejections))
    return FormView(TWO.model_copy(update={"fresh": fresh}), agreed(), SCHEMA, items, abort_plan)


def carry_out(action: LeaderAction) -> Txn:
    return for_action(action, KEYS, FENCE, SEEN)


def writes(txn: Txn) -> set[str]:
    return {op.text.replace(ROOT, "") for op in txn.then}


@pytest.mark.parametrize(
    ("action", "guards"),
    [
        (form(), [LEADS, SAME_EPOCH, SAME_VIEW, SAME_AGREED, SAME_POINTER, SAME_RESUME]),
        (form(abort_plan=3), [LEADS, SAME_EPOCH, SAME_VIEW, SAME_AGREED, SAME_POINTER, SAME_RESUME, undecided(3)]),
        (OfferCheckpoint(Resume(view=1, id="5-7")), [LEADS, SAME_VIEW]),
        (OpenPlan(plan(1)), [LEADS, SAME_EPOCH, SAME_VIEW, Compare.absent(f"{ROOT}state/plans/1")]),
        (
            OpenPlan(plan(4)),
            [
                LEADS,
                SAME_EPOCH,
                SAME_VIEW,
                Compare.absent(f"{ROOT}state/plans/4"),
                Compare.present(f"{ROOT}state/plans/3/decision"),
            ],
        ),
        (
            CommitPlan(plan(4), agreed()),
            [LEADS, SAME_EPOCH, SAME_VIEW, undecided(4), Compare.present(f"{ROOT}state/open/4")],
        ),
        (RaiseEpoch(Epoch(number=1, why=""), told=0), [LEADS, SAME_VIEW, SAME_AGREED, SAME_EPOCH]),
        (
            RaiseEpoch(Epoch(number=1, why=""), told=9),
            [LEADS, SAME_VIEW, SAME_AGREED, Compare.absent(f"{ROOT}state/plans/9"), SAME_EPOCH],
        ),
        (RewriteConfig({"lr": 0.1}), [LEADS, SAME_EPOCH]),
        (SettleEpoch(Epoch(number=1, why="")), [LEADS, SAME_EPOCH, SAME_AGREED]),
        (
            SettleEpoch(Epoch(number=1, why=""), agreed(), plan(4), 3),
            [LEADS, SAME_EPOCH, SAME_AGREED, undecided(3), Compare.absent(f"{ROOT}state/plans/4")],
        ),
        (MarkEntered(2), [LEADS, SAME_EPOCH, SAME_VIEW]),
        (
            AbortPlan(4, Decision(commit=False)),
            [LEADS, SAME_EPOCH, Compare.present(f"{ROOT}state/plans/4"), undecided(4)],
        ),
        (AnnounceForming(Forming(world_size=2, missing="1")), [LEADS]),
        (RejectValues((Rejected(name="lr", value="", revision=1, reason=""),)), [LEADS]),
        (CollectGarbage(("lr",), ("c1",)), [LEADS]),
        (RefuseWorkers((Refused(incarnation=incarnation(1), rank=0, reason=""),)), [LEADS]),
        (RejectJoin(TURNED_AWAY, None), [LEADS, SAME_VIEW, SAME_ATTEMPTS]),
        (
            replace(form(), attempts=Attempts(view=1)),
            [LEADS, SAME_EPOCH, SAME_VIEW, SAME_AGREED, SAME_POINTER, SAME_RESUME, SAME_ATTEMPTS],
        ),
        (RELEASE, [LEADS, SAME_VIEW, Compare.mod_revision(f"{ROOT}state/barriers/epoch", "==", 40)]),
    ],
    ids=lambda part: type(part).__name__ if not isinstance(part, list) else "",
)
def test_an_action_is_guarded_by_exactly_this(action: LeaderAction, guards: list[Compare]) -> None:
    compares = carry_out(action).compares
    assert sorted(map(repr, compares)) == sorted(map(repr, guards))
    assert all(guard in compares for guard in guards)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (CommitPlan(plan(4), agreed()), {"put state/plans/4/decision", "put state/agreed", "delete state/open/4"}),
        (AbortPlan(4, Decision(commit=False)), {"put state/plans/4/decision", "delete state/open/4"}),
        (
            OpenPlan(plan(1)),
            {"put state/plans/1", "put state/open/1", "delete reports/acks/1/*", "delete reports/receipts/1/*"},
        ),
        (AnnounceForming(Forming(world_size=2, missing="1")), {"put state/forming"}),
        (CollectGarbage(("lr",), ("c1",)), {"delete state/rejected/lr", "delete changes/c1"}),
        (RejectJoin(TURNED_AWAY, None), {f"put state/refused/0-{incarnation(1)}"}),
        (RejectJoin(TURNED_AWAY, Attempts(view=1)), {f"put state/refused/0-{incarnation(1)}", "put attempts"}),
        (RELEASE, {"put state/barriers/epoch", "delete state/barriers/old"}),
    ],
    ids=lambda part: type(part).__name__ if not isinstance(part, set) else "",
)
def test_an_action_writes_exactly_this(action: LeaderAction, expected: set[str]) -> None:
    assert writes(carry_out(action)) == expected


def test_only_the_command_that_was_read_is_declined() -> None:
    """Another command may have been written under its id in the meantime."""
    action = DeclineCommands((("c1", Declined(command=Command(kind="pause"), revision=40, why="no")),))
    assert Compare.mod_revision(f"{ROOT}commands/c1", "==", 40) in carry_out(action).compares


def test_a_new_view_writes_its_values_and_schema_and_aborts_the_open_plan() -> None:
    assert {"put state/view", "put state/agreed", "put schema", "put state/plans/3/decision"} <= writes(
        carry_out(form(abort_plan=3))
    )


def test_a_new_view_deletes_the_reports_of_the_one_before() -> None:
    """Failures are counted by then, and ranks that wait at a barrier report it again."""
    assert {"delete reports/failures/*", "delete reports/barriers/*"} <= writes(carry_out(form(fresh=False)))
    assert "put attempts" in writes(carry_out(replace(form(), attempts=Attempts(view=1))))
    assert "put attempts" not in writes(carry_out(form()))


def test_only_a_fresh_view_restarts_the_count_of_releases() -> None:
    assert "delete state/barriers/*" in writes(carry_out(form()))
    assert "delete state/barriers/*" not in writes(carry_out(form(fresh=False)))


def test_a_node_records_its_first_failure_in_a_view() -> None:
    txn = write_failure(KEYS, "a", RankFailure(view=3, rank=1, cause="RuntimeError"))
    assert txn.compares == (Compare.absent(f"{ROOT}reports/failures/3/a"),)


def test_only_a_fresh_view_records_its_rejections() -> None:
    assert "put state/rejected/x0" in writes(carry_out(form(rejections=1)))
    assert "put state/rejected/x0" not in writes(carry_out(form(rejections=1, fresh=False)))


def test_the_decision_that_a_commit_writes_says_commit() -> None:
    txn = carry_out(CommitPlan(plan(4), agreed()))
    (put,) = [op.wire.request_put for op in txn.then if op.wire.request_put.key.endswith(b"/decision")]
    assert Decision.decode(put.value).commit


def test_no_action_has_more_operations_than_etcd_takes() -> None:
    many = tuple(Rejected(name=f"x{n}", value="", revision=1, reason="") for n in range(500))
    kinds = tuple(f"x{n}" for n in range(MAX_COLLECTED))
    ids = tuple(WorkerId(n, "x") for n in range(MAX_COLLECTED))
    wide = plan(HISTORY_PLANS + 5, **dict[str, Any]({f"x{n}": 1.0 for n in range(500)}))
    for action in (
        form(abort_plan=3, rejections=500),
        OpenPlan(wide),
        RejectValues(many),
        CollectGarbage(kinds, kinds, kinds, ids, kinds[:5]),
    ):
        txn = carry_out(action)
        assert len(txn.then) <= MAX_OPS
        assert len({op.text for op in txn.then}) == len(txn.then)


def test_a_change_too_large_for_one_txn_is_rejected_by_its_first_names() -> None:
    many = tuple(Rejected(name=f"x{n}", value="", revision=1, reason="") for n in range(500))
    assert len(carry_out(RejectValues(many)).then) == MAX_REJECTIONS


def test_history_is_deleted_bit_by_bit() -> None:
    number = HISTORY_PLANS + 5
    assert writes(carry_out(OpenPlan(plan(number)))) == {
        f"put state/plans/{number}",
        f"put state/open/{number}",
        f"delete reports/acks/{number}/*",
        f"delete reports/receipts/{number}/*",
        f"delete reports/acks/{number - ACKS_KEPT}/*",
        f"delete reports/receipts/{number - RECEIPTS_KEPT}/*",
        "delete state/plans/5",
        "delete state/plans/5/decision",
    }


def test_writing_a_plan_back_deletes_its_older_receipts() -> None:
    written = writes(carry_out(SettleEpoch(Epoch(number=1, why=""), agreed(), plan(4))))
    assert {"put state/plans/4", "put state/plans/4/decision", "delete reports/receipts/4/*"} <= written


def test_the_prefix_of_one_plan_is_not_that_of_another() -> None:
    txn = carry_out(OpenPlan(plan(1 + ACKS_KEPT)))
    (delete,) = [op.wire.request_delete_range for op in txn.then if f"{KEYS.acks}1/" in op.text]
    assert not delete.key <= KEYS.ack(10, "a").encode() < delete.range_end
    assert delete.key <= KEYS.ack(1, "a").encode() < delete.range_end


# -- what nodes write ----------------------------------------------------------------------------------------------


def test_any_node_may_abort_an_undecided_plan() -> None:
    txn = abort(KEYS, 4, Decision(commit=False, by="b"))
    assert set(map(repr, txn.compares)) == {repr(Compare.present(KEYS.plan(4))), repr(undecided(4))}
    assert writes(txn) == {"put state/plans/4/decision", "delete state/open/4"}


def test_a_plan_without_its_mark_cannot_be_committed() -> None:
    """A rank at a gate may continue once the mark is deleted, which needs no space in etcd's database."""
    opened, committed = carry_out(OpenPlan(plan(4))), carry_out(CommitPlan(plan(4), agreed()))
    assert "put state/open/4" in writes(opened)
    assert Compare.present(f"{ROOT}state/open/4") in committed.compares


def test_an_ack_is_created_and_never_changed() -> None:
    txn = acknowledge(KEYS, 4, Ack(node="a", ranks=(0,)))
    assert txn.compares == (Compare.absent(f"{ROOT}reports/acks/4/a"),)
    assert writes(txn) == {"put reports/acks/4/a"}
    assert [op.wire.request_put.lease for op in txn.then] == [0]


def test_only_the_holder_of_the_token_can_proclaim_itself() -> None:
    leader = Leader(node="a", rank=0, incarnation=incarnation(1), candidate=FENCE.key, token=77, term=1)
    txn = proclaim(KEYS, leader)
    assert txn.compares == (LEADS, Compare.mod_revision(KEYS.epoch, "==", 0))
    assert writes(txn) == {"put state/leader", "put history/leaders/1"}


def test_the_history_of_leaders_is_bounded_and_the_last_resignation_deleted() -> None:
    former = Leader(node="b", rank=1, incarnation=incarnation(2), candidate="c", token=70, term=TERMS_KEPT)
    leader = Leader(node="a", rank=0, incarnation=incarnation(1), candidate=FENCE.key, token=77, term=TERMS_KEPT + 1)
    txn = proclaim(KEYS, leader, former, at="now", why="its process died")
    assert writes(txn) == {
        "put state/leader",
        f"put history/leaders/{TERMS_KEPT + 1}",
        "delete history/leaders/1",
        "delete reports/resigned/b",
    }
    kept = Term.decode(next(op for op in txn.then if "history" in str(op.wire.request_put.key)).wire.request_put.value)
    assert (kept.term, kept.token, kept.why) == (TERMS_KEPT + 1, 77, "its process died")
