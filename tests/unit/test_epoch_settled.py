"""When an epoch is settled, and which receipts are owed after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from instep.protocol.actions import AnnounceForming, FormView, OpenPlan, SettleEpoch
from instep.protocol.chain import after
from instep.protocol.intents import is_settled
from instep.protocol.leading import next_action
from instep.protocol.membership import RegisteredWorker
from instep.protocol.records import Agreed, Decision, Epoch, Forming, Head, Held, Plan, View
from instep.protocol.situation import Situation, TrainingProgress
from unit.parts import DIGEST, SCHEMA, desired, left, registered, view

START = Agreed(plan=0, view=1, values=SCHEMA.defaults()).as_start()


def plan(number: int, before: Agreed, lr: float) -> Plan:
    values = {"lr": lr}
    return Plan(number=number, view=1, gate=10, values=values, previous={}, revision=1, parent=before.digest)


ONE = plan(1, START, 0.2)
AFTER_ONE = after(START, ONE)
TWO = plan(2, AFTER_ONE, 0.3)
AFTER_TWO = after(AFTER_ONE, TWO)
EPOCH = Epoch(number=1, why="it went back")
COMMIT = Decision(commit=True)


def trained(rank: int, agreed: Agreed, *, epoch: int = 1, node: str = "a", number: int = 1) -> RegisteredWorker:
    """Rank r of incarnation 10 + r, which was in view `number` and holds `agreed`."""
    item = registered(rank, 10 + rank, node=node)
    head = Head(plan=agreed.plan, digest=agreed.digest, told=agreed.plan)
    return replace(item, member=item.member.model_copy(update={"view": number, "head": head, "epoch": epoch}))


def now(*here: RegisteredWorker, **more: Any) -> Situation:
    usual: dict[str, Any] = {
        "registered": here,
        "schemas": {DIGEST: SCHEMA.encode()},
        "schema": SCHEMA,
        "epoch": EPOCH,
        "epoch_revision": 50,
        "progress": TrainingProgress(step=20, step_time_s=0.1, margin_steps=4),
    }
    return Situation(**{**usual, **more})


def is_settling(situation: Situation) -> bool:
    action = next_action(situation)
    return isinstance(action, SettleEpoch) and action.epoch.settled


# -- every rank is waited for -----------------------------------------------------------------------------------------


def test_an_emptied_etcd_is_not_settled_before_every_rank_has_reported() -> None:
    """Rank 1 has applied decision 2, which rank 0 does not know: settled without rank 1, rank 0 would abort it."""
    first = trained(0, AFTER_ONE)
    held = {"a": Held(agreed=AFTER_ONE, plan=ONE), "b": Held(agreed=AFTER_TWO, plan=TWO)}
    assert not is_settling(now(first, held=held))
    action = next_action(now(first, trained(1, AFTER_TWO, node="b"), held=held))
    assert isinstance(action, SettleEpoch)
    assert (action.epoch.settled, action.agreed and action.agreed.digest) == (True, TWO.digest)


def test_a_newcomer_that_registers_first_does_not_settle_the_epoch_for_training_ranks() -> None:
    first = registered(1, 30, node="b", epoch=1)
    assert not is_settling(now(first))
    assert is_settling(now(first, registered(0, 31, epoch=1)))


def test_the_epoch_waits_for_a_rank_restored_from_backup_to_register_again() -> None:
    """The backup is from before its first step: it may have trained since, and hold values that the others do not
    know."""
    held = {"a": Held(agreed=AFTER_ONE, plan=ONE)}
    assert not is_settling(now(trained(0, AFTER_ONE), registered(1, 30, node="b"), held=held))
    assert is_settling(now(trained(0, AFTER_ONE), registered(1, 30, node="b", epoch=1), held=held))


def test_no_view_includes_a_rank_whose_registration_a_backup_may_have_brought_back() -> None:
    settled = {"agreed": START, "epoch": EPOCH.model_copy(update={"settled": True})}
    first = registered(0, 30, epoch=1)
    assert not isinstance(next_action(now(first, registered(1, 31, node="b"), **settled)), FormView)
    assert isinstance(next_action(now(first, registered(1, 31, node="b", epoch=1), **settled)), FormView)


def test_the_epoch_waits_for_the_replacement_of_a_dead_rank() -> None:
    held = {"a": Held(agreed=AFTER_ONE, plan=ONE)}
    assert not is_settling(now(trained(0, AFTER_ONE), held=held))
    assert is_settling(now(trained(0, AFTER_ONE), registered(1, 60, node="b", epoch=1), held=held))


def test_a_rank_that_has_left_is_not_required() -> None:
    held = {"a": Held(agreed=AFTER_ONE, plan=ONE)}
    here = trained(0, AFTER_ONE, number=3)
    assert is_settling(now(here, held=held, left={"b": left(1, view=3)}))
    assert not is_settling(now(here, held=held, left={"b": left(1, view=2)})), "its successor may train since"


def test_a_worker_of_another_world_size_delays_no_epoch() -> None:
    held = {"a": Held(agreed=AFTER_ONE, plan=ONE)}
    stranger = registered(5, 70, world_size=8, node="c")
    assert is_settling(now(trained(0, AFTER_ONE), trained(1, AFTER_ONE, node="b"), stranger, held=held))


def test_waiting_workers_learn_which_ranks_are_missing() -> None:
    action = next_action(now(registered(1, 30, node="b")))
    assert action == AnnounceForming(Forming(world_size=2, missing="0"))


# -- receipts that are lost ----------------------------------------------------------------------------------------

BOTH: View = view({"a": {0: 10}, "b": {1: 11}})
SETTLED = EPOCH.model_copy(update={"settled": True, "plan": 2, "digest": TWO.digest})


def committed(*here: RegisteredWorker, newest: Plan = TWO, **more: Any) -> Situation:
    return now(*here, view=BOTH, agreed=AFTER_TWO, plan=newest, decision=COMMIT, epoch=SETTLED, **more)


def test_a_worker_that_reported_a_commit_owes_no_receipt_that_etcd_lost() -> None:
    both = trained(0, AFTER_TWO), trained(1, AFTER_TWO, node="b")
    assert is_settled(committed(*both))
    assert is_settled(committed(*both, newest=ONE)), "the record of the newest plan may be lost for good"
    action = next_action(committed(*both, desired=desired(lr=("0.5", 60))))
    assert isinstance(action, OpenPlan)
    assert (action.plan.number, action.plan.parent) == (3, TWO.digest)


def test_a_report_from_an_earlier_epoch_or_plan_is_no_receipt() -> None:
    assert not is_settled(committed(trained(0, AFTER_TWO), trained(1, AFTER_ONE, node="b")))
    assert not is_settled(committed(trained(0, AFTER_TWO), trained(1, AFTER_TWO, epoch=0, node="b")))
    assert not is_settled(committed(trained(0, AFTER_TWO)))


def test_a_plan_that_was_opened_after_etcd_was_settled_waits_for_its_receipts() -> None:
    three = plan(3, AFTER_TWO, 0.4)
    held = after(AFTER_TWO, three)
    here = trained(0, held), trained(1, held, node="b")
    assert not is_settled(replace(committed(*here, newest=three), agreed=held))
