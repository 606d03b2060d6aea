"""The leader's next action for a situation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.names import PREFER_KEY
from instep.protocol.actions import (
    AbortPlan,
    AnnounceForming,
    CollectGarbage,
    CommitPlan,
    FormView,
    MarkEntered,
    OpenPlan,
    RefuseWorkers,
    RejectValues,
)
from instep.protocol.intents import is_settled
from instep.protocol.leading import PLAN_TIMEOUT_S, next_action
from instep.protocol.membership import RegisteredWorker
from instep.protocol.records import Change, Decision, Directive, Elastic, Forming, Head, Receipt, WorkerId
from instep.protocol.schema import Schema
from instep.protocol.situation import Situation, TrainingProgress
from unit.parts import DIGEST, SCHEMA, agreed, desired, incarnation, left, plan, registered, rejected, view

TWO = view({"a": {0: 10}, "b": {1: 11}})
BOTH = (registered(0, 10, node="a"), registered(1, 11, node="b"))
COMMIT, ABORT = Decision(commit=True), Decision(commit=False)
APPLIED = {"a": Receipt(node="a", steps={0: 10}), "b": Receipt(node="b", steps={1: 10})}
DEFAULTS = SCHEMA.defaults()


def now(**more: Any) -> Situation:
    """A run of two ranks on two nodes at step 20, in which no action is due."""
    calm: dict[str, Any] = {
        "view": TWO,
        "agreed": agreed(),
        "registered": BOTH,
        "schemas": {DIGEST: SCHEMA.encode()},
        "schema": SCHEMA,
        "progress": TrainingProgress(step=20, step_time_s=0.1, margin_steps=4),
    }
    return Situation(**{**calm, **more})


def test_a_settled_run_needs_no_action() -> None:
    assert next_action(now()) is None


# -- members -------------------------------------------------------------------------------------------------------


def test_the_first_view_starts_from_the_desired_values() -> None:
    first = now(view=None, agreed=None, desired=desired(lr=("0.5", 7), clip=("nonsense", 8)))
    action = next_action(first)
    assert isinstance(action, FormView)
    assert (action.view.number, action.view.fresh) == (1, True)
    assert action.view.start.values == action.agreed.values == {**DEFAULTS, "lr": 0.5}
    assert action.agreed.revision == 8
    assert [item.name for item in action.rejections] == ["clip"]
    assert action.abort_plan is None


def test_the_record_of_a_start_names_the_authors_of_changes_before_it() -> None:
    marks = {
        7: Change(id="abc", names=("lr",), author="ann", reason="slower"),
        8: Change(id="d", names=(), author="bob"),
    }
    action = next_action(now(view=None, agreed=None, desired=desired(lr=("0.5", 7), clip=("no", 8)), changes=marks))
    assert isinstance(action, FormView)
    assert [(item.names, item.author, item.reason) for item in action.changes] == [(("lr",), "ann", "slower")]
    assert [(item.name, item.author) for item in action.rejections] == [("clip", "bob")]


@pytest.mark.parametrize(("restarts", "lr"), [(0, DEFAULTS["lr"]), (1, 0.5)])
def test_a_start_prefers_the_script_where_its_schema_says_so_and_a_restart_of_the_job_does_not(
    restarts: int, lr: float
) -> None:
    schema = Schema({**(SCHEMA.document or {}), PREFER_KEY: "script"})
    again = Elastic(restarts=restarts, max_restarts=3)
    comers = tuple(replace(item, member=item.member.model_copy(update={"elastic": again})) for item in BOTH)
    action = next_action(
        now(
            view=None,
            agreed=None,
            registered=comers,
            schemas={DIGEST: schema.encode()},
            schema=schema,
            desired=desired(lr=("0.5", 7)),
        )
    )
    assert isinstance(action, FormView)
    assert action.view.start.values["lr"] == action.agreed.values["lr"] == lr


def test_a_view_does_not_form_before_its_schema_is_there() -> None:
    assert next_action(now(view=None, agreed=None, schemas={})) is None


def test_beside_continuing_workers_a_newcomer_gets_the_agreed_values() -> None:
    held = agreed({**DEFAULTS, "lr": 0.5}, plan=3, gate=30, previous=DEFAULTS)
    action = next_action(
        now(
            agreed=held,
            registered=(BOTH[0], registered(1, 12, node="b")),
            plan=plan(3, gate=30),
            decision=COMMIT,
            desired=desired(lr=("0.9", 9)),
        )
    )
    assert isinstance(action, FormView)
    assert (action.view.number, action.view.fresh) == (2, False)
    start = action.view.start
    assert (start.values, start.plan, start.gate, start.previous) == (held.values, 3, 30, DEFAULTS)


@pytest.mark.parametrize(("plan_number", "began", "gate"), [(3, 0, 0), (3, 3, None), (0, 0, None)])
def test_a_newcomer_owes_a_receipt_for_a_command_too(plan_number: int, began: int, gate: int | None) -> None:
    """No value has changed since the run began, so there is no gate. Without one, a newcomer would write no receipt,
    and everything after the command would wait for it."""
    held = replace(agreed(plan=plan_number), began=began)
    replaced = (BOTH[0], registered(1, 12, node="b"))
    action = next_action(now(agreed=held, registered=replaced))
    assert isinstance(action, FormView)
    assert not action.view.fresh
    assert action.view.start.gate == gate
    assert action.agreed == replace(held, view=2)
    assert action.view.incarnations()[1] == incarnation(12)


def test_forming_a_view_aborts_the_plan_that_was_open() -> None:
    newcomer = (BOTH[0], registered(1, 12, node="b"))
    action = next_action(now(registered=newcomer, plan=plan(4)))
    assert isinstance(action, FormView)
    assert action.abort_plan == 4
    action = next_action(now(registered=newcomer, plan=plan(4), decision=ABORT))
    assert isinstance(action, FormView)
    assert action.abort_plan is None


def test_plan_numbers_continue_after_a_fresh_start() -> None:
    restarted = (registered(0, 20), registered(1, 21))
    action = next_action(now(registered=restarted, plan=plan(7), decision=COMMIT, desired=desired(lr=("0.5", 7))))
    assert isinstance(action, FormView)
    assert action.view.fresh
    assert (action.agreed.plan, action.view.start.plan, action.view.start.gate) == (7, 7, None)
    assert action.agreed.values == {**DEFAULTS, "lr": 0.5}


def test_missing_ranks_are_announced_once() -> None:
    one = (registered(2, 12, world_size=4),)
    news = Forming(world_size=4, missing="0-1,3")
    assert next_action(now(view=None, registered=one)) == AnnounceForming(news)
    assert next_action(now(view=None, registered=one, forming=news)) is None


def test_only_workers_that_have_disagreed_for_long_are_refused() -> None:
    stranger = registered(0, 12, world_size=8)
    crowd = (*BOTH, stranger)
    assert not isinstance(next_action(now(registered=crowd)), RefuseWorkers)
    action = next_action(now(registered=crowd, long_mismatched=frozenset({stranger.member.worker})))
    assert isinstance(action, RefuseWorkers)
    assert [item.worker for item in action.refused] == [stranger.member.worker]
    assert "world size is 8" in action.refused[0].reason


def test_a_worker_that_no_longer_disagrees_is_not_refused() -> None:
    assert next_action(now(long_mismatched=frozenset({WorkerId(0, incarnation(10))}))) is None


# -- an open plan --------------------------------------------------------------------------------------------------


def test_a_plan_is_committed_when_every_node_has_acknowledged_and_not_before() -> None:
    assert next_action(now(plan=plan())) is None
    assert next_action(now(plan=plan(), acked=frozenset({"a"}))) is None
    action = next_action(now(plan=plan(), acked=frozenset({"a", "b", "elsewhere"})))
    assert isinstance(action, CommitPlan)
    assert action.agreed.values == {**DEFAULTS, "lr": 0.5}
    assert (action.agreed.gate, action.agreed.plan, action.agreed.previous) == (10, 1, DEFAULTS)


def test_a_node_whose_ranks_have_all_left_need_not_acknowledge() -> None:
    action = next_action(now(plan=plan(), acked=frozenset({"a"}), left={"b": left(1, last_step=9)}))
    assert isinstance(action, CommitPlan)


def test_a_plan_whose_gate_a_rank_had_passed_when_it_left_is_aborted_even_with_all_acks() -> None:
    action = next_action(now(plan=plan(gate=10), acked=frozenset({"a", "b"}), left={"b": left(1, last_step=10)}))
    assert isinstance(action, AbortPlan)
    assert action.decision.step == 10


def test_a_plan_of_another_view_is_aborted_even_with_all_acks() -> None:
    action = next_action(now(plan=plan(view=7), acked=frozenset({"a", "b"})))
    assert isinstance(action, AbortPlan)
    assert action.decision == Decision(commit=False, reason="the view changed")


def test_an_undecided_plan_is_aborted_after_a_time() -> None:
    assert next_action(now(plan=plan(), plan_age_s=PLAN_TIMEOUT_S)) is None
    action = next_action(now(plan=plan(), plan_age_s=PLAN_TIMEOUT_S + 1))
    assert isinstance(action, AbortPlan)
    assert not action.decision.commit


def test_a_run_of_long_steps_gets_the_time_it_needs() -> None:
    slow = TrainingProgress(step=20, step_time_s=100.0, margin_steps=2)
    assert next_action(now(plan=plan(), plan_age_s=599.0, progress=slow)) is None
    assert isinstance(next_action(now(plan=plan(), plan_age_s=601.0, progress=slow)), AbortPlan)


# -- is it settled? ------------------------------------------------------------------------------------------------


def test_a_plan_is_settled_when_it_is_aborted_or_applied_by_every_node_that_runs() -> None:
    gated = agreed(plan=1, gate=10)
    assert is_settled(now())
    assert not is_settled(now(plan=plan()))
    assert is_settled(now(plan=plan(), decision=ABORT))
    assert not is_settled(now(agreed=gated, plan=plan(), decision=COMMIT))
    assert not is_settled(now(agreed=gated, plan=plan(), decision=COMMIT, receipts={"a": APPLIED["a"]}))
    assert is_settled(now(agreed=gated, plan=plan(), decision=COMMIT, receipts=APPLIED))


def test_a_node_that_has_left_owes_no_receipt() -> None:
    assert is_settled(now(plan=plan(), decision=COMMIT, receipts={"a": APPLIED["a"]}, left={"b": left(1)}))


def test_a_fresh_view_owes_nothing_to_the_plans_before_it() -> None:
    restarted = view({"a": {0: 20}, "b": {1: 21}}, number=2)
    assert is_settled(now(view=restarted, agreed=agreed(plan=1, began=1), plan=plan(view=1), decision=COMMIT))
    goes_on = view({"a": {0: 10}, "b": {1: 21}}, number=2, fresh=False)
    gated = agreed(plan=1, gate=10)
    assert not is_settled(now(view=goes_on, agreed=gated, plan=plan(view=1), decision=COMMIT))


def test_a_partial_restart_after_a_fresh_view_owes_nothing_to_the_plans_before_that() -> None:
    goes_on = view({"a": {0: 10}, "b": {1: 21}}, number=3, fresh=False)
    assert is_settled(now(view=goes_on, agreed=agreed(plan=1, began=1), plan=plan(view=1), decision=COMMIT))


# -- config --------------------------------------------------------------------------------------------------------


def test_a_change_becomes_a_plan_some_steps_ahead() -> None:
    change = Change(id="c1", names=("lr",), author="ann", reason="spike")
    action = next_action(now(desired=desired(lr=("0.5", 7)), changes={7: change}))
    assert isinstance(action, OpenPlan)
    opened = action.plan
    assert (opened.number, opened.view, opened.gate, opened.revision) == (1, 1, 24, 7)
    assert (opened.values, opened.previous) == ({"lr": 0.5}, {"lr": 0.1})
    assert (opened.author, opened.reason, opened.change_id) == ("ann", "spike", "c1")


def test_no_plan_is_opened_while_one_is_not_settled() -> None:
    wish = desired(lr=("0.5", 7))
    assert next_action(now(desired=wish, plan=plan(clip=2.0))) is None
    gated = agreed(plan=1, gate=10)
    assert next_action(now(desired=wish, agreed=gated, plan=plan(clip=2.0), decision=COMMIT)) is None
    action = next_action(now(desired=wish, agreed=gated, plan=plan(clip=2.0), decision=COMMIT, receipts=APPLIED))
    assert isinstance(action, OpenPlan)
    assert action.plan.number == 2


@pytest.mark.parametrize(
    "more",
    [
        {"progress": TrainingProgress(step=None)},
        {"registered": BOTH[:1], "forming": Forming(world_size=2, missing="1")},
        {"view": None, "registered": ()},
        {"agreed": None},
    ],
    ids=["no rank has begun", "a rank is missing", "no view", "nothing agreed"],
)
def test_a_change_waits_while_no_worker_trains(more: dict[str, Any]) -> None:
    assert next_action(now(desired=desired(lr=("0.5", 7)), **more)) is None


@pytest.mark.parametrize(
    ("more", "gate"),
    [
        ({}, 24),
        ({"plan": plan(3), "decision": Decision(commit=False, step=99)}, 103),
        ({"plan": plan(3), "decision": Decision(commit=False, step=5)}, 24),
        ({"left": {"b": left(1, last_step=50)}}, 54),
    ],
    ids=["our own step", "a rank that was late", "one that was not", "a rank that left"],
)
def test_the_gate_lies_after_the_furthest_rank_that_is_known(more: dict[str, Any], gate: int) -> None:
    action = next_action(now(desired=desired(lr=("0.5", 7)), **more))
    assert isinstance(action, OpenPlan)
    assert action.plan.gate == gate


def test_an_aborted_change_is_planned_again() -> None:
    action = next_action(now(desired=desired(lr=("0.5", 7)), plan=plan(3, revision=7), decision=ABORT))
    assert isinstance(action, OpenPlan)
    assert (action.plan.number, action.plan.values) == (4, {"lr": 0.5})


def test_an_invalid_value_is_rejected_with_the_name_of_its_author() -> None:
    change = Change(id="c1", names=("lr",), author="ann", reason="hot")
    action = next_action(now(desired=desired(lr=("50", 7)), changes={7: change}))
    assert isinstance(action, RejectValues)
    (item,) = action.rejections
    assert (item.name, item.value, item.author, item.why, item.change_id) == ("lr", "50", "ann", "hot", "c1")


def test_a_value_that_a_worker_refused_is_rejected_and_not_planned_again() -> None:
    refusal = Decision(commit=False, refused={"lr": "not with adam"})
    wish = desired(lr=("0.5", 7), clip=("2.0", 7))
    action = next_action(now(desired=wish, plan=plan(revision=7, lr=0.5, clip=2.0), decision=refusal))
    assert isinstance(action, RejectValues)
    assert {item.name: item.by for item in action.rejections} == {"lr": "worker", "clip": "worker"}
    held = {item.name: item for item in action.rejections}
    after = now(desired=wish, plan=plan(revision=7, lr=0.5, clip=2.0), decision=refusal, rejected=held)
    assert next_action(after) is None


def test_a_refused_value_that_is_written_again_is_planned() -> None:
    refusal = Decision(commit=False, refused={"lr": "not with adam"})
    action = next_action(now(desired=desired(lr=("0.25", 9)), plan=plan(revision=7), decision=refusal))
    assert isinstance(action, OpenPlan)
    assert action.plan.values == {"lr": 0.25}


def test_finished_rejections_and_changes_are_deleted() -> None:
    action = next_action(
        now(
            desired=desired(lr=("0.1", 9)),
            rejected=rejected("lr", 7),
            changes={9: Change(id="done", names=("lr",))},
        )
    )
    assert action == CollectGarbage(("lr",), ("done",))


def test_the_author_of_a_change_that_waits_is_kept() -> None:
    waiting = now(
        desired=desired(lr=("0.5", 7)), changes={7: Change(id="c", names=("lr",))}, progress=TrainingProgress(step=None)
    )
    assert next_action(waiting) is None


# -- the most urgent first -----------------------------------------------------------------------------------------


def test_a_view_comes_before_a_commit_and_a_commit_before_the_next_change() -> None:
    everything: dict[str, Any] = {
        "plan": plan(),
        "acked": frozenset({"a", "b"}),
        "desired": desired(clip=("2.0", 9), batch=("-1", 8)),
        "rejected": rejected("lr", 1),
    }
    newcomer = (BOTH[0], registered(1, 12, node="b"))
    assert isinstance(next_action(now(**everything, registered=newcomer)), FormView)
    assert isinstance(next_action(now(**everything)), CommitPlan)
    done = {**everything, "decision": COMMIT, "receipts": APPLIED}
    assert isinstance(next_action(now(**done)), RejectValues)
    refused = {**rejected("lr", 1), **rejected("batch", 8)}
    assert isinstance(next_action(now(**{**done, "rejected": refused})), OpenPlan)
    assert isinstance(next_action(now(**{**done, "rejected": rejected("lr", 1), "desired": {}})), CollectGarbage)


ACKS = st.frozensets(st.sampled_from(["a", "b", "c"]))
LEFT = st.dictionaries(
    st.sampled_from(["a", "b"]),
    st.builds(
        lambda rank, view, step: left(rank, view=view, last_step=step), *[st.integers(0, 2)] * 2, st.integers(5, 15)
    ),
)


@given(
    acked=ACKS, gone=LEFT, age_s=st.sampled_from([0.0, 1e4]), there=st.sets(st.sampled_from(BOTH)), of=st.integers(1, 2)
)
def test_a_commit_has_the_acks_of_all_running_nodes_and_a_gate_that_no_rank_has_passed(
    acked: frozenset[str], gone: dict[str, Any], age_s: float, there: set[Any], of: int
) -> None:
    open_plan = plan(view=of)
    action = next_action(now(plan=open_plan, acked=acked, left=gone, plan_age_s=age_s, registered=tuple(there)))
    if not isinstance(action, CommitPlan):
        return
    assert of == TWO.number
    for node, rank in (("a", 0), ("b", 1)):
        record = gone.get(node)
        has_left = record is not None and record.view == TWO.number and rank in record.ranks
        assert node in acked or has_left
        assert record is None or not has_left or record.last_step < open_plan.gate


def test_a_plan_that_can_no_longer_be_committed_is_aborted_by_the_leader() -> None:
    """A rank passed its gate while the database was full, and its agent died before it could write the abort."""
    action = next_action(now(plan=plan(3), acked=frozenset({"a", "b"}), open=False))
    assert isinstance(action, AbortPlan)
    assert action.number == 3


def test_a_plan_that_was_committed_is_not_aborted_because_its_decision_was_deleted() -> None:
    committed = replace(agreed(), plan=3)
    assert next_action(now(plan=plan(3), acked=frozenset({"a", "b"}), agreed=committed, open=False)) is None


def test_no_view_is_formed_of_workers_that_trained_with_unknown_values() -> None:
    """The desired values may differ from those that the training ranks hold."""
    there = tuple(replace(item, member=item.member.model_copy(update={"view": 3})) for item in BOTH)
    action = next_action(now(view=None, agreed=None, registered=there))
    assert not isinstance(action, FormView)


# -- when etcd's history has gone back -------------------------------------------------------------------------------


def _trains(item: RegisteredWorker, epoch: int = 1) -> RegisteredWorker:
    head = Head(plan=0, digest="")
    return replace(item, member=item.member.model_copy(update={"view": 1, "head": head, "epoch": epoch}))


def test_a_view_that_starts_with_outdated_values_is_not_entered() -> None:
    """Its newcomers could not begin, and no other view would be formed."""
    start = replace(TWO.start, digest="old")
    waits = TWO.model_copy(update={"start": start, "staying": "0"})
    news = {"view": waits, "registered": (_trains(BOTH[0], 0),)}
    assert isinstance(next_action(now(**news, agreed=replace(agreed(), digest="old"))), MarkEntered)
    assert not isinstance(next_action(now(**news, agreed=replace(agreed(), digest="new"))), MarkEntered)


def test_nothing_is_planned_if_a_rank_left_after_the_pause() -> None:
    """No gate fits: the plan would be aborted at once and repeated endlessly."""
    paused = replace(agreed(), directive=Directive(paused_at=8))
    order: dict[str, Any] = {"agreed": paused, "desired": desired(lr=("0.5", 7))}
    assert isinstance(next_action(now(**order, left={"b": left(1, last_step=7)})), OpenPlan)
    assert next_action(now(**order, left={"b": left(1, last_step=12)})) is None
