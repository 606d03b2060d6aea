"""What a worker promises, and what it must do at a step."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instep.worker.gate import NEVER, Apply, Gate, PromiseAnswer, Wait

LR = {"lr": 0.5}
CLIP = {"clip": 2.0}


def promised(gate_step: int = 10) -> Gate:
    gate = Gate()
    assert gate.on_plan(1, gate_step, LR, next_step=5) is PromiseAnswer.ARMED
    return gate


def test_without_a_promise_no_step_checks_the_gate() -> None:
    gate = Gate()
    assert gate.next_gate == NEVER
    assert gate.undecided is None
    assert gate.at(10**9) is None


def test_a_plan_received_before_its_gate_is_promised() -> None:
    gate = promised()
    assert gate.next_gate == 10
    assert gate.undecided == 1


def test_the_gate_may_be_the_very_step_that_is_about_to_run() -> None:
    assert Gate().on_plan(1, 10, LR, next_step=10) is PromiseAnswer.ARMED


def test_a_plan_received_after_its_gate_is_late_and_not_promised() -> None:
    gate = Gate()
    assert gate.on_plan(1, 10, LR, next_step=11) is PromiseAnswer.LATE
    assert gate.next_gate == NEVER


def test_before_the_gate_steps_run_and_at_the_gate_they_wait() -> None:
    gate = promised()
    assert gate.at(9) is None
    assert gate.at(10) == Wait(1)
    assert gate.at(11) == Wait(1)
    assert gate.at(10) == Wait(1)


def test_a_commit_is_applied_at_the_gate_and_once() -> None:
    gate = promised()
    gate.on_decision(1, commit=True)
    assert gate.at(9) is None
    assert gate.at(10) == Apply(1, LR)
    assert gate.at(10) is None
    assert gate.next_gate == NEVER


def test_an_abort_ends_the_promise() -> None:
    gate = promised()
    gate.on_decision(1, commit=False)
    assert gate.at(10) is None
    assert gate.next_gate == NEVER
    assert gate.undecided is None


def test_a_second_plan_is_for_later_while_the_first_is_not_settled() -> None:
    gate = promised()
    assert gate.on_plan(2, 20, CLIP, next_step=6) is PromiseAnswer.LATER
    gate.on_decision(1, commit=True)
    assert gate.on_plan(2, 20, CLIP, next_step=6) is PromiseAnswer.LATER
    assert gate.at(10) == Apply(1, LR)
    assert gate.on_plan(2, 20, CLIP, next_step=10) is PromiseAnswer.ARMED


def test_after_an_abort_the_next_plan_is_promised_at_once() -> None:
    gate = promised()
    gate.on_decision(1, commit=False)
    assert gate.on_plan(2, 20, CLIP, next_step=6) is PromiseAnswer.ARMED


def test_a_repeated_plan_is_still_promised() -> None:
    gate = promised()
    assert gate.on_plan(1, 10, LR, next_step=9) is PromiseAnswer.ARMED


def test_a_plan_repeated_after_its_decision_is_known() -> None:
    gate = promised()
    gate.on_decision(1, commit=True)
    assert gate.on_plan(1, 10, LR, next_step=6) is PromiseAnswer.KNOWN
    gate.at(10)
    assert gate.on_plan(1, 10, LR, next_step=6) is PromiseAnswer.KNOWN


def test_an_older_plan_than_one_promised_is_known() -> None:
    gate = Gate()
    gate.on_plan(3, 10, LR, next_step=5)
    assert gate.on_plan(2, 12, LR, next_step=5) is PromiseAnswer.KNOWN


def test_the_decision_of_a_plan_never_promised_changes_nothing() -> None:
    gate = promised()
    gate.on_decision(2, commit=False)
    gate.on_decision(0, commit=True)
    assert gate.undecided == 1


def test_a_repeated_decision_is_ignored() -> None:
    gate = promised()
    gate.on_decision(1, commit=True)
    gate.on_decision(1, commit=True)
    assert gate.at(10) == Apply(1, LR)
    gate.on_decision(1, commit=True)
    assert gate.at(11) is None


def test_a_newcomer_inherits_the_gate_it_has_before_it() -> None:
    gate = Gate()
    gate.start(4)
    gate.inherit(4, 30, LR)
    assert gate.at(29) is None
    assert gate.on_plan(5, 40, CLIP, next_step=12) is PromiseAnswer.LATER
    assert gate.at(30) == Apply(4, LR)
    assert gate.on_plan(5, 40, CLIP, next_step=30) is PromiseAnswer.ARMED


def test_a_newcomer_knows_the_plans_before_its_view() -> None:
    gate = Gate()
    gate.start(4)
    assert gate.on_plan(4, 99, LR, next_step=0) is PromiseAnswer.KNOWN
    assert gate.on_plan(5, 99, LR, next_step=0) is PromiseAnswer.ARMED


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("plan"), st.integers(1, 6), st.integers(0, 12)),
        st.tuples(st.just("decision"), st.integers(1, 6), st.booleans()),
        st.tuples(st.just("step"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@given(EVENTS)
def test_no_step_passes_a_promised_gate_before_the_decision(
    events: list[tuple[str, int, int]],
) -> None:
    """Plans and decisions in any order, repeated or lost; one decision and one gate per plan."""
    gate, step = Gate(), 0
    gates: dict[int, int] = {}
    decisions: dict[int, bool] = {}
    open_promises: dict[int, int] = {}
    applied: list[int] = []
    for kind, number, what in events:
        if kind == "plan":
            at = gates.setdefault(number, what)
            if gate.on_plan(number, at, {"n": number}, next_step=step) is PromiseAnswer.ARMED:
                assert step <= at
                open_promises.setdefault(number, at)
        elif kind == "decision" and number in open_promises:
            gate.on_decision(number, decisions.setdefault(number, bool(what)))
            if not decisions[number]:
                del open_promises[number]
        elif kind == "step":
            while isinstance(due := gate.at(step), Apply):
                assert decisions[due.number]
                assert step == open_promises.pop(due.number)
                applied.append(due.number)
            if due is None:
                assert all(at > step for at in open_promises.values())
                step += 1
        assert len(open_promises) <= 1
        assert gate.next_gate == next(iter(open_promises.values()), NEVER)
    assert applied == sorted(set(applied))
