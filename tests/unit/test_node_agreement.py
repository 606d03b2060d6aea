"""How one node answers for all its ranks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.protocol.chain import Promised
from instep.protocol.node import (
    NodeAction,
    NodeAgreement,
    SettlePromise,
    TellDecision,
    TellPlan,
    WriteAck,
    WriteLeft,
    WriteReceipt,
)
from instep.protocol.records import Ack, Decision, Receipt
from unit.parts import left, plan, view

COMMIT, ABORT = Decision(commit=True), Decision(commit=False)
PROMISED = Promised(1, plan().digest, 0)
THREE = view({"a": {0: 10, 1: 11}, "b": {2: 12}})


def node_of(name: str = "a") -> NodeAgreement:
    node = NodeAgreement(name)
    node.on_view(THREE)
    return node


def with_plan(gate: int = 10) -> NodeAgreement:
    node = node_of()
    node.on_plan(plan(gate=gate))
    return node


def acks(actions: list[NodeAction]) -> list[Ack]:
    return [action.ack.model_copy(update={"digest": ""}) for action in actions if isinstance(action, WriteAck)]


def settled(actions: list[NodeAction]) -> list[Decision]:
    return [action.decision for action in actions if isinstance(action, SettlePromise)]


def receipts(actions: list[NodeAction]) -> list[Receipt]:
    return [action.receipt for action in actions if isinstance(action, WriteReceipt)]


def test_a_plan_goes_to_every_rank_of_the_node_without_an_ack() -> None:
    assert node_of().on_plan(plan()) == [TellPlan(0, plan()), TellPlan(1, plan())]


def test_the_node_acknowledges_only_when_every_rank_has_promised() -> None:
    node = with_plan()
    assert node.on_armed(0, 1) == []
    assert acks(node.on_armed(1, 1)) == [Ack(node="a", ranks=(0, 1))]


def test_a_promise_for_another_plan_or_from_another_rank_is_ignored() -> None:
    node = with_plan()
    assert node.on_armed(0, 1) == []
    assert node.on_armed(1, 2) == []
    assert node.on_armed(2, 1) == []
    assert node.armed == {0}


def test_a_rank_that_left_before_the_gate_need_not_promise() -> None:
    node = with_plan(gate=10)
    node.on_armed(0, 1)
    actions = node.on_left(1, last_step=9)
    assert WriteLeft(left(1, last_step=9)) in actions
    assert acks(actions) == [Ack(node="a", ranks=(0,))]


def test_a_rank_that_left_past_the_gate_makes_the_plan_fail() -> None:
    node = with_plan(gate=10)
    node.on_armed(0, 1)
    actions = node.on_left(1, last_step=10)
    assert acks(actions) == []
    (decision,) = settled(actions)
    assert not decision.commit
    assert decision.step == 10


def test_a_plan_whose_gate_a_rank_had_passed_when_it_left_is_refused_at_once() -> None:
    node = node_of()
    node.on_left(1, last_step=50)
    (decision,) = settled(node.on_plan(plan(gate=50)))
    assert decision.step == 50
    node = node_of()
    node.on_left(1, last_step=50)
    assert settled(node.on_plan(plan(gate=51))) == []


def test_a_node_whose_ranks_have_all_left_acknowledges_alone() -> None:
    node = node_of()
    node.on_left(0, 9)
    node.on_left(1, 9)
    assert acks(node.on_plan(plan(gate=10))) == [Ack(node="a", ranks=())]


def test_a_rank_that_died_makes_an_open_plan_fail() -> None:
    node = with_plan()
    node.on_armed(0, 1)
    (decision,) = settled(node.on_died(1))
    assert not decision.commit
    assert "rank 1 died" in (decision.reason or "")
    assert acks(node.on_armed(0, 1)) == []


def test_a_rank_that_died_cannot_undo_a_decision() -> None:
    node = with_plan()
    node.on_decision(1, COMMIT)
    assert node.on_died(1) == []


def test_a_rank_that_left_does_not_die_afterwards() -> None:
    node = with_plan()
    node.on_armed(0, 1)
    node.on_left(1, 5)
    assert node.on_died(1) == []


def test_a_node_with_a_dead_rank_does_not_acknowledge_a_new_plan() -> None:
    node = node_of()
    node.on_died(1)
    assert node.on_plan(plan()) == [TellPlan(0, plan())]
    assert acks(node.on_armed(0, 1)) == []


@pytest.mark.parametrize("step", [11, 12, 500])
def test_a_late_rank_makes_the_plan_fail_and_names_its_step(step: int) -> None:
    (decision,) = settled(with_plan(gate=10).on_late(0, 1, step))
    assert (decision.commit, decision.step, decision.by) == (False, step, "a")


def test_a_rank_that_cannot_accept_the_values_makes_the_plan_fail_with_its_reasons() -> None:
    (decision,) = settled(with_plan().on_refused(1, {"lr": "too warm"}, rank=1))
    assert not decision.commit
    assert decision.refused == {"lr": "too warm"}


def test_a_rank_at_the_gate_has_the_plan_settled() -> None:
    (decision,) = settled(with_plan().on_gate(0, PROMISED, 10))
    assert not decision.commit


def test_a_rank_at_the_gate_gets_the_known_decision() -> None:
    node = with_plan()
    node.on_decision(1, COMMIT)
    assert node.on_gate(0, PROMISED, 10) == [TellDecision(0, 1, COMMIT, plan().digest)]


def test_a_rank_at_the_gate_of_an_unknown_plan_has_it_settled() -> None:
    (decision,) = settled(node_of().on_gate(0, Promised(7, "", 0), 10))
    assert not decision.commit


def test_a_decision_goes_to_the_ranks_that_still_run() -> None:
    node = with_plan()
    node.on_left(1, 5)
    assert node.on_decision(1, ABORT) == [TellDecision(0, 1, ABORT, plan().digest)]


def test_the_receipt_is_written_when_every_rank_that_runs_has_applied() -> None:
    node = with_plan()
    node.on_decision(1, COMMIT)
    assert receipts(node.on_applied(0, 1, 10)) == []
    assert receipts(node.on_applied(1, 1, 10)) == [Receipt(node="a", steps={0: 10, 1: 10})]


def test_a_rank_that_left_is_not_waited_for_by_the_receipt() -> None:
    node = with_plan()
    node.on_decision(1, COMMIT)
    node.on_applied(0, 1, 10)
    assert receipts(node.on_left(1, 9)) == [Receipt(node="a", steps={0: 10})]


def test_the_receipt_of_a_rank_that_leaves_is_written_before_its_departure() -> None:
    """Otherwise it would not be counted among the ranks that applied the change."""
    node = with_plan(gate=10)
    node.on_applied(0, 1, 10)
    node.on_applied(1, 1, 10)
    actions = node.on_left(0, last_step=11)
    assert [type(action) for action in actions][:2] == [WriteReceipt, WriteLeft]
    assert node.left() == left(0, last_step=11)


def test_a_plan_of_another_view_or_an_older_one_is_ignored() -> None:
    node = node_of()
    assert node.on_plan(plan(view=2)) == []
    node.on_plan(plan(3))
    assert node.on_plan(plan(2)) == []
    assert node.on_plan(plan(3)) == []


def test_a_worker_that_reconnects_gets_the_open_plan() -> None:
    node = with_plan()
    assert node.on_joined(0) == [TellPlan(0, plan())]
    node.on_decision(1, COMMIT)
    assert node.on_joined(0) == [TellPlan(0, plan()), TellDecision(0, 1, COMMIT, plan().digest)]
    assert node.on_joined(2) == []


def test_a_new_view_asks_every_rank_again() -> None:
    node = with_plan()
    node.on_armed(0, 1)
    node.on_view(view({"a": {0: 10, 1: 13}, "b": {2: 12}}, number=2, fresh=False))
    assert node.armed == set()
    node.on_plan(plan(2, view=2))
    assert acks(node.on_armed(1, 2)) == []
    assert acks(node.on_armed(0, 2)) == [Ack(node="a", ranks=(0, 1))]


def test_a_new_agent_reads_from_the_record_which_ranks_left() -> None:
    node = NodeAgreement("a")
    node.on_view(THREE, left(1, last_step=20))
    (decision,) = settled(node.on_plan(plan(gate=20)))
    assert decision.step == 20
    node = NodeAgreement("a")
    node.on_view(THREE, left(1, view=7, last_step=20))
    assert settled(node.on_plan(plan(gate=20))) == []


def test_a_node_without_a_rank_in_the_view_writes_nothing() -> None:
    node = node_of("elsewhere")
    assert node.on_plan(plan()) == []
    assert node.on_armed(0, 1) == []
    assert node.on_died(0) == []
    assert node.on_left(0, 5) == []


EVENT = st.one_of(
    st.tuples(st.just("armed"), st.integers(0, 2)),
    st.tuples(st.just("left"), st.integers(0, 2)),
    st.tuples(st.just("died"), st.integers(0, 2)),
    st.tuples(st.just("joined"), st.integers(0, 2)),
)


@given(st.lists(EVENT, max_size=12), st.integers(0, 12))
def test_an_ack_always_means_that_every_rank_promised_or_left_before_the_gate(
    events: list[tuple[str, int]], last_step: int
) -> None:
    node, gate = with_plan(gate=10), 10
    promised: set[int] = set()
    gone: set[int] = set()
    for kind, rank in events:
        if rank in gone:
            continue  # a rank that has left sends nothing more
        match kind:
            case "armed":
                promised.add(rank)
                actions = node.on_armed(rank, 1)
            case "left":
                gone.add(rank)
                actions = node.on_left(rank, last_step)
            case "died":
                actions = node.on_died(rank)
            case _:
                actions = node.on_joined(rank)
        if acks(actions):
            assert {0, 1} <= promised | gone
            assert last_step < gate or not gone & {0, 1}


def test_a_receipt_names_values_that_an_optimizer_lacks_even_if_found_later() -> None:
    node = with_plan()
    assert receipts(node.on_applied(0, 1, 10, ("lr",))) == []
    assert receipts(node.on_applied(1, 1, 10)) == [Receipt(node="a", steps={0: 10, 1: 10}, drift={0: ("lr",)})]
    assert receipts(node.on_applied(1, 1, 10, ("lr", "wd")))[0].drift == {0: ("lr",), 1: ("lr", "wd")}
    assert receipts(node.on_applied(0, 1, 10)) == [Receipt(node="a", steps={0: 10, 1: 10}, drift={1: ("lr", "wd")})]
    node.on_plan(plan(number=2, gate=20))
    node.on_applied(0, 2, 20)
    assert receipts(node.on_applied(1, 2, 20)) == [Receipt(node="a", steps={0: 20, 1: 20})]


def test_an_ack_names_the_plan_that_was_promised() -> None:
    """Once etcd's history has gone back, another plan may have its number."""
    node = with_plan()
    node.on_armed(0, 1)
    [action] = node.on_armed(1, 1)
    assert isinstance(action, WriteAck)
    assert action.ack.digest == plan(gate=10).digest


def test_an_answer_to_another_plan_of_the_same_number_is_ignored() -> None:
    """After etcd's history has gone back, a worker may refer to the plan that is lost."""
    node = with_plan()
    assert node.is_about(1, PROMISED.digest)
    assert not node.is_about(1, plan(gate=11).digest)
    assert node.is_about(1, "")
    assert node.is_about(2, plan(2).digest)
    assert node_of().is_about(1, "of a plan that this agent has not seen")
