"""A worker promises a plan only if it follows from the decision that the worker holds."""

from __future__ import annotations

from typing import Any

from instep.protocol.chain import Promised, StoredPlan, Unknown, after, if_committed, verdict
from instep.protocol.records import Agreed, Decision, Plan, Snapshot
from instep.wire.messages import Decide, PlanArmed, PlanForeign, PlanRefused, ProposePlan
from instep.worker.agreement import Agreement
from instep.worker.hyper import Codec, Hyperparameters

START = Agreed(plan=0, view=1, values={"lr": 0.1}).as_start()


class Hyper(Hyperparameters):
    lr: float = 0.1


def plan(number: int, parent: str, lr: float | str) -> Plan:
    return Plan(number=number, view=1, gate=9, values={"lr": lr}, previous={}, revision=1, parent=parent)


def told(item: Plan, agreed: Agreed | None = None) -> ProposePlan:
    return ProposePlan(item, if_committed(agreed, item))


def worker() -> Agreement[Any]:
    made = Agreement[Any](Codec(Hyper))
    made.start(Snapshot(values=START.values), 1, START)
    made.begin(1)
    return made


def test_a_plan_that_does_not_follow_from_the_decision_held_is_refused() -> None:
    agreement, first = worker(), plan(1, START.digest, 0.2)
    assert agreement.on_plan(told(first, START), 2) == [PlanArmed(1, first.digest)]
    agreement.on_decision(Decide(1, True, first.digest), 3)
    due = agreement.due(9)
    assert due is not None
    agreement.apply(due, 9)  # type: ignore[arg-type]
    assert isinstance(agreement.on_plan(told(plan(2, START.digest, 0.3)), 9)[0], PlanForeign)
    assert isinstance(agreement.on_plan(told(plan(2, first.digest, 0.3)), 9)[0], PlanArmed)


def test_another_plan_with_the_promised_number_is_refused_and_its_decision_ignored() -> None:
    agreement, first, other = worker(), plan(1, START.digest, 0.2), plan(1, START.digest, 0.3)
    agreement.on_plan(told(first, START), 2)
    assert isinstance(agreement.on_plan(told(other, START), 3)[0], PlanForeign)
    agreement.on_decision(Decide(1, True, other.digest), 4)
    assert agreement.gate.undecided == 1


def test_a_worker_that_waits_at_the_gate_of_a_plan_it_refused_asks_about_that_plan() -> None:
    """Its number alone does not identify it: with the digest of the previous plan, the agent would consider it
    agreed."""
    agreement, first = worker(), plan(1, START.digest, 0.2)
    agreement.on_plan(told(first, START), 2)
    agreement.on_decision(Decide(1, True, first.digest), 3)
    due = agreement.due(9)
    assert due is not None
    agreement.apply(due, 9)  # type: ignore[arg-type]
    refused = plan(2, first.digest, "much")
    for _ in range(2):  # the next agent sends it again
        assert isinstance(agreement.on_plan(told(refused, after(START, first)), 9)[0], PlanRefused)
    assert agreement.gate.undecided == 2
    assert agreement.at_gate(2, 9).digest == refused.digest


def test_a_plan_is_agreed_if_both_its_number_and_its_digest_match() -> None:
    first = plan(1, START.digest, 0.2)
    found = StoredPlan(plan(2, first.digest, 0.3), None, after(START, first), None)
    assert verdict(Promised(1, first.digest, 0), found) == Decision(commit=True, by="leader")
    assert verdict(Promised(2, first.digest, 0), found) is Unknown.LOST
