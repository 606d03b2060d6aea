"""What the records alone show about a history that may have gone back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from instep.protocol.chain import (
    HeadStatus,
    Promised,
    StoredPlan,
    Unknown,
    after,
    conflict,
    head_status,
    if_committed,
    is_lost,
    verdict,
)
from instep.protocol.records import Agreed, Decision, Epoch, Head, Member, Plan
from unit.parts import registered

START = Agreed(plan=0, view=1, values={"lr": 0.1}).as_start()


def plan(number: int, parent: str, lr: float, epoch: int = 0) -> Plan:
    return Plan(number=number, view=1, gate=9, values={"lr": lr}, previous={}, revision=1, parent=parent, epoch=epoch)


ONE = plan(1, START.digest, 0.2)
AFTER_ONE = after(START, ONE)
TWO = plan(2, AFTER_ONE.digest, 0.3)
AFTER_TWO = after(AFTER_ONE, TWO)
OTHER_TWO = plan(2, AFTER_ONE.digest, 0.5)


def test_a_rewritten_plan_keeps_its_digest_and_another_plan_has_another() -> None:
    assert replace(ONE, restored=1).digest == ONE.digest
    assert Plan.decode(ONE.encode()).digest == ONE.digest
    assert TWO.digest != OTHER_TWO.digest


def test_the_agreed_values_name_the_decision_before_them() -> None:
    assert (AFTER_TWO.digest, AFTER_TWO.parent) == (TWO.digest, ONE.digest)
    assert if_committed(AFTER_ONE, TWO) == AFTER_TWO
    assert if_committed(AFTER_TWO, TWO) == AFTER_TWO
    assert if_committed(START, TWO) is None


@pytest.mark.parametrize(
    ("number", "digest", "agreed", "where"),
    [
        (2, TWO.digest, AFTER_TWO, HeadStatus.IN_STEP),
        (1, ONE.digest, AFTER_TWO, HeadStatus.IN_STEP),  # it learns of the second one late
        (2, TWO.digest, AFTER_ONE, HeadStatus.BEYOND),
        (2, TWO.digest, None, HeadStatus.BEYOND),
        (2, OTHER_TWO.digest, AFTER_TWO, HeadStatus.BRANCHED),
        (0, START.digest, AFTER_TWO, HeadStatus.BRANCHED),
        (2, "", AFTER_ONE, HeadStatus.IN_STEP),
    ],
)
def test_the_status_of_a_workers_head(number: int, digest: str, agreed: Agreed | None, where: HeadStatus) -> None:
    assert head_status(number, digest, agreed) is where


def trained(held: Agreed, *, view: int = 3, epoch: int = 1, told: int = 0) -> Member:
    head = Head(plan=held.plan, digest=held.digest, told=told)
    return registered(0, 10).member.model_copy(update={"view": view, "epoch": epoch, "head": head})


def test_an_impossible_registration_proves_that_the_history_went_back() -> None:
    knows_two = trained(AFTER_TWO)
    assert is_lost(knows_two, AFTER_ONE, 3, 1, 2)
    assert is_lost(trained(AFTER_TWO, view=4), AFTER_TWO, 3, 1, 2)
    assert is_lost(knows_two, AFTER_TWO, 3, 0, 2)
    assert is_lost(knows_two, None, 3, 1, 2)
    assert not is_lost(knows_two, AFTER_TWO, 3, 1, 2)
    assert not is_lost(trained(AFTER_ONE), AFTER_TWO, 3, 1, 2)  # it may be an old registration
    told = trained(AFTER_TWO, told=3)
    assert is_lost(told, AFTER_TWO, 3, 1, 2)  # a worker that promised it waits at its gate, and there is no other proof
    assert not is_lost(told, AFTER_TWO, 3, 1, 3)
    assert not is_lost(trained(AFTER_TWO, view=9), AFTER_ONE, 3, 2, 2)  # brought back from before the epoch
    assert not is_lost(registered(0, 10).member, AFTER_ONE, 3, 0, 2)  # it holds nothing


def test_workers_of_two_branches_are_not_joined() -> None:
    top = Head(plan=2, digest=TWO.digest)
    behind, other = Head(plan=1, digest=ONE.digest), Head(plan=2, digest=OTHER_TWO.digest)
    assert conflict([(0, top), (1, behind)], top, ONE.digest) is None
    problem = conflict([(0, top), (1, other)], top, ONE.digest)
    assert problem is not None
    assert problem.startswith("rank 1 holds decision 2")


COMMIT, ABORT = Decision(commit=True), Decision(commit=False)
PROMISED = Promised(2, TWO.digest, 0)
SETTLED = Epoch(number=1, why="", settled=True, plan=1, digest=ONE.digest)


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (StoredPlan(TWO, None, AFTER_ONE, None), Unknown.OPEN),
        (StoredPlan(TWO, ABORT, AFTER_ONE, None), ABORT),
        (StoredPlan(None, None, AFTER_ONE, None), Unknown.LOST),
        (StoredPlan(OTHER_TWO, None, AFTER_ONE, None), Unknown.LOST),
        (StoredPlan(OTHER_TWO, ABORT, AFTER_ONE, None), Unknown.LOST),
        (StoredPlan(OTHER_TWO, COMMIT, after(AFTER_ONE, OTHER_TWO), None), Unknown.LOST),
        (StoredPlan(TWO, None, AFTER_ONE, Epoch(number=1, why="")), Unknown.LOST),  # a new epoch: the ranks are asked
        (StoredPlan(None, None, AFTER_ONE, Epoch(number=1, why="")), Unknown.LOST),
        (StoredPlan(None, ABORT, AFTER_ONE, None), ABORT),  # the history keeps so many plans
    ],
)
def test_a_rank_at_a_gate_does_not_guess(found: StoredPlan, what: Decision | Unknown) -> None:
    assert verdict(PROMISED, found) == what


def test_a_plan_that_was_written_back_is_committed_and_one_that_no_rank_knows_is_not() -> None:
    written_back = verdict(PROMISED, StoredPlan(None, None, AFTER_TWO, Epoch(number=1, why="")))
    assert isinstance(written_back, Decision)
    assert written_back.commit
    forgotten = verdict(PROMISED, StoredPlan(OTHER_TWO, None, AFTER_ONE, SETTLED))
    assert isinstance(forgotten, Decision)
    assert not forgotten.commit
