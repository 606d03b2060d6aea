"""How far ahead a gate is set."""

from __future__ import annotations

from instep.protocol.margin import MAX_FACTOR, MAX_STEPS, REMEMBERED, Ahead, Margin


def test_slow_steps_need_two() -> None:
    """One for the boundary at which ranks answer, and one for the decision."""
    margin = Margin(write_s=0.002)
    assert margin.ahead(step_time_s=1.0, since_s=0.3).gate == 2


def test_a_step_about_to_end_answers_a_boundary_later() -> None:
    margin = Margin(write_s=0.002)
    assert margin.ahead(step_time_s=1.0, since_s=0.999).arming == 2


def test_a_step_that_takes_longer_than_usual_is_treated_as_a_usual_one() -> None:
    margin = Margin(write_s=0.002)
    assert margin.ahead(step_time_s=1.0, since_s=30.0) == margin.ahead(step_time_s=1.0, since_s=1.0)


def test_fast_steps_over_a_slow_network_need_dozens() -> None:
    assert 24 <= Margin(write_s=0.02).ahead(step_time_s=0.001, since_s=0.0).gate <= 100


def test_it_covers_the_recent_times_of_agreement() -> None:
    margin = Margin(write_s=0.002)
    for rest_ms in range(REMEMBERED):
        margin.committed(rest_ms / 1000)
    ahead = margin.ahead(step_time_s=0.001, since_s=0.0)
    assert REMEMBERED * 0.9 <= ahead.gate - ahead.arming <= REMEMBERED


def test_it_does_not_cover_a_rare_outlier() -> None:
    margin = Margin(write_s=0.002)
    before = _with_usual_plans(margin)
    margin.committed(3.0)
    assert margin.ahead(step_time_s=0.005, since_s=0.0) == before


def test_the_plan_after_an_abort_has_twice_the_margin_and_the_one_after_that_the_usual() -> None:
    margin = Margin(write_s=0.002)
    before = _with_usual_plans(margin)
    margin.aborted(0.01)
    assert margin.ahead(step_time_s=0.005, since_s=0.0).gate == 2 * before.gate
    margin.committed(0.006)
    assert margin.ahead(step_time_s=0.005, since_s=0.0) == before


def test_repeated_aborts_widen_the_margin_permanently() -> None:
    margin = Margin(write_s=0.002)
    before = _with_usual_plans(margin)
    for _ in range(4):
        margin.aborted(0.01)
        margin.committed(0.006)
    while margin.factor > 1:
        margin.committed(0.006)
    assert margin.ahead(step_time_s=0.005, since_s=0.0).gate > before.gate


def test_it_has_bounds() -> None:
    margin = Margin()
    for _ in range(100):
        margin.aborted(1e9)
    assert margin.factor == MAX_FACTOR
    assert margin.ahead(step_time_s=0.0, since_s=1e9).gate == MAX_STEPS


def _with_usual_plans(margin: Margin) -> Ahead:
    for _ in range(REMEMBERED):
        margin.committed(0.006)
    return margin.ahead(step_time_s=0.005, since_s=0.0)


def test_aborts_in_a_row_double_the_gate_and_are_forgotten_after_some_commits() -> None:
    margin = Margin(write_s=0.001)
    usual = margin.ahead(0.005, 0.0).gate
    for _ in range(5):
        ahead = margin.ahead(0.005, 0.0)
        margin.aborted((ahead.gate - ahead.arming) * 0.005)
    assert margin.ahead(0.005, 0.0).gate <= 64 * (usual + 8)
    for _ in range(8):
        margin.committed(0.003)
    assert margin.ahead(0.005, 0.0).gate <= usual + 8
