"""How long a preempted process may wait for the other ranks."""

from __future__ import annotations

import math

import pytest

from instep.worker.grace_budget import SHORTEST_GOODBYE_S, GraceBudget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_before_a_signal_there_is_no_deadline(clock: Clock) -> None:
    notice = GraceBudget(30, clock)
    assert notice.agree_by is None
    assert notice.left_s == math.inf


def test_time_for_one_and_a_half_saves_is_reserved(clock: Clock) -> None:
    notice = GraceBudget(30, clock)
    notice.saw_save("1-1", 4.0)
    notice.take()
    assert notice.agree_by == 100 + 30 - 6 - 1
    assert notice.shortage is None


def test_only_the_first_signal_starts_the_clock(clock: Clock) -> None:
    notice = GraceBudget(30, clock)
    notice.take()
    clock.now += 10
    notice.take()
    assert notice.waited_s == 10
    assert notice.left_s == 20


def test_a_process_that_leaves_does_not_wait_until_it_is_killed(clock: Clock) -> None:
    budget = GraceBudget(4, clock)
    assert budget.settling_s == budget.goodbye_s == math.inf
    budget.take()
    assert (budget.settling_s, budget.goodbye_s) == (3, 3.5)
    clock.now += 3
    assert (budget.settling_s, budget.goodbye_s) == (0, 0.5)
    clock.now += 10
    assert (budget.settling_s, budget.goodbye_s) == (0, SHORTEST_GOODBYE_S)


def test_the_longest_of_the_last_saves_counts(clock: Clock) -> None:
    notice = GraceBudget(100, clock)
    for number, duration_s in enumerate((50.0, 3.0, 9.0, 3.0, 3.0, 3.0)):
        assert notice.saw_save(f"{number}-1", duration_s)
    assert notice.save_s == 9.0
    assert not notice.saw_save("5-1", 70.0), "seen already"


def test_a_save_longer_than_the_grace_period_is_reported_with_the_fix(clock: Clock) -> None:
    notice = GraceBudget(30, clock)
    notice.saw_save("1-1", 40.0)
    assert notice.shortage is not None
    assert "a save takes 40.0 s and there are 30 s" in notice.shortage
    assert "INSTEP_GRACE_S to 82 or more" in notice.shortage
    enough = GraceBudget(82, clock)
    enough.saw_save("1-1", 40.0)
    assert enough.shortage is None


def test_agreement_gets_a_quarter_of_the_grace_period_however_long_a_save_takes(clock: Clock) -> None:
    """The rank that saves may be on another node, which is not preempted."""
    notice = GraceBudget(30, clock)
    notice.saw_save("1-1", 400.0)
    notice.take()
    assert notice.agree_by == 107.5
