"""How failures are counted, and which workers are refused because of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from instep.protocol import attempts, membership
from instep.protocol.actions import CommitPlan, FormView, RejectJoin
from instep.protocol.attempts import (
    FAILURES_KEPT,
    MAX_CAUSES,
    NODE_LOST,
    OTHER,
    TAKEN_OVER,
    FailureSituation,
    ReportedFailure,
)
from instep.protocol.leading import next_action
from instep.protocol.membership import RegisteredWorker, WorkerGroup
from instep.protocol.records import Attempts, Directive, RankFailure, Refused, WorkerId
from instep.protocol.situation import ProgressDetector, Situation
from unit.parts import DIGEST, SCHEMA, agreed, incarnation, left, plan, registered, view

TWO = view({"a": {0: 10}, "b": {1: 11}}, number=3)
NEW = registered(1, 12, node="b")
STAYS = registered(0, 10, node="a")


def allowing(item: RegisteredWorker, max_restarts: int | None) -> RegisteredWorker:
    return replace(item, member=item.member.model_copy(update={"max_restarts": max_restarts}))


def group(*items: RegisteredWorker) -> WorkerGroup:
    (found,) = membership.groups(items)
    return found


def failure(rank: int, cause: str = "RuntimeError", of: int = 3) -> RankFailure:
    return RankFailure(view=of, rank=rank, host="h", cause=cause)


def past(**more: Any) -> FailureSituation:
    calm: dict[str, Any] = {
        "view": TWO,
        "left": {},
        "stopping": False,
        "registered": (STAYS, NEW),
        "reports": (),
        "attempts": Attempts(),
    }
    return FailureSituation(**{**calm, **more})


def failed(times: int, of: int = 2, **more: Any) -> Attempts:
    failures = tuple(failure(0, of=of) for _ in range(times))
    return Attempts(view=of, counts={"RuntimeError": times}, failures=failures, **more)


def test_a_view_that_lost_ranks_failed_once_for_the_first_reported_reason() -> None:
    fallen = group(registered(0, 20), registered(1, 21))
    reports = (
        ReportedFailure(failure(0, "AfterEffect"), 9),
        ReportedFailure(failure(1, "Cause"), 7),
        ReportedFailure(failure(1, "Old", 2), 1),
    )
    found = attempts.counted(past(reports=reports), fallen)
    assert (found.counts, found.view, found.failures) == ({"Cause": 1}, 3, (failure(1, "Cause"),))


FOUR = {"a": {0: 10}, "b": {1: 11}, "c": {2: 12}, "d": {3: 13}}
FOUR_NAMES = {0: 10, 1: 11, 2: 12, 3: 13}


def replacing(names: dict[int, int]) -> WorkerGroup:
    return group(*(registered(rank, at, world_size=4) for rank, at in names.items()))


def after_the_first() -> Attempts:
    """Rank 0 has failed and was replaced by a new process."""
    found = attempts.counted(past(view=view(FOUR, number=3), registered=()), replacing({**FOUR_NAMES, 0: 20}))
    assert (found.total, found.replaced) == (1, "0")
    return found


SECOND = view({**FOUR, "a": {0: 20}}, number=4)


@pytest.mark.parametrize(
    ("names", "has_progressed", "total"),
    [
        ({**FOUR_NAMES, 0: 20, 1: 21}, False, 1),
        ({**FOUR_NAMES, 0: 20, 1: 21}, True, 2),
        ({**FOUR_NAMES, 0: 30}, False, 2),
        ({0: 30, 1: 31, 2: 32, 3: 33}, False, 2),
    ],
    ids=["fell with it", "fell later", "the new one fell", "all fell, the new one too"],
)
def test_ranks_that_exit_before_training_resumes_belong_to_the_same_failure(
    names: dict[int, int], has_progressed: bool, total: int
) -> None:
    found = attempts.counted(
        past(view=SECOND, registered=(), attempts=after_the_first(), has_progressed=has_progressed), replacing(names)
    )
    assert (found.total, found.view) == (total, 4)


def test_a_reset_or_a_view_in_between_makes_the_next_loss_a_failure_of_its_own() -> None:
    there = replacing({**FOUR_NAMES, 0: 20, 1: 21})
    cleared = Attempts(view=3)
    assert attempts.counted(past(view=SECOND, registered=(), attempts=cleared), there).total == 1
    later = SECOND.model_copy(update={"number": 5})
    assert attempts.counted(past(view=later, registered=(), attempts=after_the_first()), there).total == 2


def test_a_count_without_replaced_ranks_is_not_extended() -> None:
    """A user has written into etcd; no decision may fail because of it."""
    assert Attempts.decode_or_none(b'{"replaced": "all"}') is None


def test_a_view_has_progressed_once_it_began_and_ended_a_step() -> None:
    detector = ProgressDetector()
    seen = [(1, None), (1, 7), (1, 8), (1, 9), (1, 9), (2, 9), (2, 10), (2, 4), (2, 5), (2, 6)]
    assert [detector.progressed(*item) for item in seen] == [False] * 3 + [True] * 2 + [False] * 4 + [True]


def test_a_report_about_a_continuing_rank_is_not_the_cause() -> None:
    found = attempts.counted(past(reports=(ReportedFailure(failure(0), 7),)), group(STAYS, NEW))
    assert found.counts == {NODE_LOST: 1}


def test_a_lost_rank_without_a_report_was_lost_with_its_node() -> None:
    found = attempts.counted(past(), group(STAYS, NEW))
    assert (found.failures[0].cause, found.failures[0].rank, found.failures[0].host) == (NODE_LOST, 1, "b")


def test_a_living_rank_that_is_replaced_was_taken_over() -> None:
    there = (STAYS, registered(1, 11, node="b"), NEW)
    found = attempts.counted(past(registered=there), group(STAYS, NEW))
    assert found.counts == {TAKEN_OVER: 1}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"view": None}, "no worker trained"),
        ({"left": {"b": left(1, view=3)}}, "it left cleanly"),
        ({"stopping": True}, "the run was stopped"),
        ({"attempts": failed(1, of=3)}, "its view is counted already"),
    ],
)
def test_no_failure_is_counted(more: dict[str, Any], why: str) -> None:
    given = past(**more)
    assert attempts.counted(given, group(STAYS, NEW)) == given.attempts, why


def test_a_clean_end_clears_the_failures_before_all_ranks_are_back() -> None:
    """Otherwise the first rank to return would be refused because of failures that the last one clears."""
    ended = past(left={"a": left(0, view=3), "b": left(1, view=3)}, attempts=failed(7))
    assert attempts.counted(ended, None).total == 0
    assert attempts.counted(ended, group(registered(0, 20), registered(1, 21))).total == 0
    assert attempts.counted(past(attempts=failed(7)), None).total == 7


def test_the_recorded_failures_are_bounded() -> None:
    found = Attempts()
    for number in range(MAX_CAUSES + 30):
        of = view({"a": {0: 10}, "b": {1: 11}}, number=number + 1)
        reports = (ReportedFailure(failure(1, f"Error{number}", number + 1), 5),)
        found = attempts.counted(past(view=of, attempts=found, reports=reports), group(STAYS, NEW))
    assert found.total == MAX_CAUSES + 30
    assert len(found.failures) == FAILURES_KEPT
    assert found.counts[OTHER] == 30


def test_the_lowest_restart_limit_of_the_ranks_counts() -> None:
    three, five, free = (allowing(NEW, limit) for limit in (3, 5, None))
    assert attempts.limit_of(group(allowing(STAYS, None), five)) == 5
    assert attempts.limit_of(group(allowing(STAYS, 5), three)) == 3
    assert attempts.limit_of(group(STAYS, free)) is None


@pytest.mark.parametrize(
    ("limit", "total", "is_refused"), [(3, 3, False), (3, 4, True), (0, 0, False), (0, 1, True), (None, 99, False)]
)
def test_newcomers_are_refused_beyond_the_restart_limit(limit: int | None, total: int, is_refused: bool) -> None:
    refused = attempts.rejected_joins(TWO, (STAYS, allowing(NEW, limit)), failed(total), "gpt-a")
    assert [item.worker for item in refused] == ([NEW.member.worker] if is_refused else [])


def test_one_record_refuses_a_whole_group_except_training_workers() -> None:
    trained = registered(2, 30, world_size=3)
    trained = replace(trained, member=trained.member.model_copy(update={"view": 2}))
    there = [allowing(registered(rank, 20 + rank, world_size=3), 1) for rank in (1, 0)]
    (refused,) = attempts.rejected_joins(None, (*there, trained), failed(2), "gpt-a")
    assert refused.workers() == (WorkerId(0, incarnation(20)), WorkerId(1, incarnation(21)))
    assert Refused.decode(refused.encode()) == refused


def test_a_refusal_names_the_failures_and_the_fix() -> None:
    text = attempts.why_not(failed(8), 2, "gpt-a")
    assert text.startswith(
        "the run has failed 8 times and may be restarted 2 times (max_restarts): view 2, rank 0 on h"
    )
    assert "and 3 before that" in text
    assert text.endswith("Fix the cause, then run 'instep reset gpt-a'")


# -- as the leader decides --------------------------------------------------------------------------------------------


def now(**more: Any) -> Situation:
    calm: dict[str, Any] = {
        "view": TWO,
        "agreed": agreed(view=3),
        "registered": (STAYS, NEW),
        "schemas": {DIGEST: SCHEMA.encode()},
        "schema": SCHEMA,
        "run": "gpt-a",
    }
    return Situation(**{**calm, **more})


def test_the_view_that_replaces_a_lost_rank_counts_the_failure() -> None:
    action = next_action(now(attempts=failed(1)))
    assert isinstance(action, FormView)
    assert action.attempts is not None
    assert (action.attempts.total, action.attempts.view) == (2, 3)


def test_a_view_without_a_loss_counts_nothing() -> None:
    action = next_action(now(left={"b": left(1, view=3)}))
    assert isinstance(action, FormView)
    assert action.attempts is None


def test_a_failure_beyond_the_limit_forms_no_view_and_is_counted() -> None:
    there = (STAYS, allowing(NEW, 1))
    action = next_action(now(registered=there, attempts=failed(1)))
    assert isinstance(action, RejectJoin)
    assert action.attempts is not None
    assert action.attempts.total == 2
    again = next_action(now(registered=there, attempts=action.attempts))
    assert isinstance(again, RejectJoin)
    assert again.attempts is None


def test_a_plan_of_training_workers_continues_while_newcomers_are_refused() -> None:
    """Refused workers are no longer considered."""
    both = (STAYS, registered(1, 11, node="b"))
    open_plan = plan(view=3)
    action = next_action(now(registered=both, attempts=failed(9), plan=open_plan, acked=frozenset({"a", "b"})))
    assert isinstance(action, CommitPlan)


def test_a_stop_is_no_failure() -> None:
    action = next_action(now(agreed=agreed(view=3, directive=Directive(ends_at=7))))
    assert isinstance(action, FormView)
    assert action.attempts is None


def test_one_crash_counts_once_if_ranks_are_replaced_one_by_one() -> None:
    """Rank 0 fails, the others fail in the collective that waits for it, and each node restarts its own rank."""
    count = Attempts()
    before = view({str(rank): {rank: 10 + rank} for rank in range(4)})
    for rank in range(4):
        names = {other: (20 if other <= rank else 10) + other for other in range(4)}
        here = tuple(registered(other, name, world_size=4, node=str(other)) for other, name in names.items())
        (group,) = membership.groups(here)
        past = FailureSituation(view=before, left={}, stopping=False, registered=here, reports=(), attempts=count)
        count = attempts.counted(past, group)
        before = view({str(other): {other: name} for other, name in names.items()}, number=before.number + 1)
    assert count.total == 1
