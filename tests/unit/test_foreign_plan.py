"""A worker promises a plan only where that follows from the decision that it holds."""

from __future__ import annotations

from typing import Any

from instep.coordination.chain import Found, Promised, Unknown, after, if_committed, verdict
from instep.coordination.records import Agreed, Decision, Plan
from instep.worker.agreement import Agreement
from instep.worker.hyper import Codec, Hyperparameters

START = Agreed(plan=0, view=1, values={"lr": 0.1}).as_start()


class Hyper(Hyperparameters):
    lr: float = 0.1


def plan(number: int, parent: str, lr: float | str) -> Plan:
    return Plan(number=number, view=1, gate=9, values={"lr": lr}, previous={}, revision=1, parent=parent)


def told(item: Plan, agreed: Agreed | None = None) -> dict[str, Any]:
    then = if_committed(agreed, item)
    about = {"n": item.number, "gate": item.gate, "values": item.values, "digest": item.digest, "parent": item.parent}
    return {"t": "plan", **about, "then": then.model_dump() if then is not None else None}


def worker() -> Agreement[Any]:
    made = Agreement[Any](Codec(Hyper))
    made.start({"values": START.values, "plan": 0}, 1, START.model_dump())
    made.begin(1)
    return made


def test_a_plan_that_does_not_follow_from_the_decision_held_is_refused() -> None:
    agreement, first = worker(), plan(1, START.digest, 0.2)
    assert agreement.hear_plan(told(first, START), 2)[0]["t"] == "armed"
    agreement.hear_decision(1, True, 3, first.digest)
    due = agreement.due(9)
    assert due is not None
    agreement.apply(due, 9)  # type: ignore[arg-type]
    assert agreement.hear_plan(told(plan(2, START.digest, 0.3)), 9)[0]["t"] == "foreign"
    assert agreement.hear_plan(told(plan(2, first.digest, 0.3)), 9)[0]["t"] == "armed"


def test_another_plan_under_the_number_of_the_one_promised_is_refused_and_its_decision_is_not_the_ones() -> None:
    agreement, first, other = worker(), plan(1, START.digest, 0.2), plan(1, START.digest, 0.3)
    agreement.hear_plan(told(first, START), 2)
    assert agreement.hear_plan(told(other, START), 3)[0]["t"] == "foreign"
    agreement.hear_decision(1, True, 4, other.digest)
    assert agreement.gate.undecided == 1


def test_a_worker_that_waits_at_the_gate_of_a_plan_it_refused_asks_about_that_plan() -> None:
    """Its number alone does not name it: with the digest of the plan before, the agent would take it for agreed."""
    agreement, first = worker(), plan(1, START.digest, 0.2)
    agreement.hear_plan(told(first, START), 2)
    agreement.hear_decision(1, True, 3, first.digest)
    due = agreement.due(9)
    assert due is not None
    agreement.apply(due, 9)  # type: ignore[arg-type]
    refused = plan(2, first.digest, "much")
    for _ in range(2):  # the next agent tells it again
        assert agreement.hear_plan(told(refused, after(START, first)), 9)[0]["t"] == "refused"
    assert agreement.gate.undecided == 2
    assert agreement.promised()["digest"] == refused.digest


def test_a_plan_is_agreed_where_both_its_number_and_its_digest_are() -> None:
    first = plan(1, START.digest, 0.2)
    found = Found(plan(2, first.digest, 0.3), None, after(START, first), None)
    assert verdict(Promised(1, first.digest, 0), found) == Decision(commit=True, by="leader")
    assert verdict(Promised(2, first.digest, 0), found) is Unknown.LOST
