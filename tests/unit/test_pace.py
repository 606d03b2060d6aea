"""How fast the workers step."""

from __future__ import annotations

import pytest

from instep.agent.workers import PaceMeter


def meter_of(*pairs: tuple[int, float]) -> PaceMeter:
    meter = PaceMeter()
    for step, at in pairs:
        meter.observe(step, at)
    return meter


def test_two_boundaries_are_needed() -> None:
    assert meter_of().step_time_s == 0.0
    assert meter_of((0, 5.0)).step_time_s == 0.0
    assert meter_of((0, 5.0), (1, 5.5)).step_time_s == pytest.approx(0.5)


@pytest.mark.parametrize("step_time_s", [0.001, 0.1, 2.0, 60.0])
def test_a_steady_pace_is_measured_at_any_rate_of_checks(step_time_s: float) -> None:
    meter = meter_of(*((step, step * step_time_s) for step in range(2000)))
    assert meter.step_time_s == pytest.approx(step_time_s, rel=0.05)


def test_steps_between_two_checks_are_counted() -> None:
    assert meter_of((0, 0.0), (100, 1.0)).step_time_s == pytest.approx(0.01)


def test_only_the_last_seconds_count() -> None:
    slow = [(step, step * 1.0) for step in range(20)]
    fast = [(19 + 10 * n, 19 + n * 1.0) for n in range(1, 20)]
    assert meter_of(*slow, *fast).step_time_s == pytest.approx(0.1, rel=0.1)


def test_checking_twice_at_the_same_step_changes_nothing() -> None:
    assert meter_of((0, 0.0), (1, 1.0), (1, 9.0), (0, 10.0)).step_time_s == pytest.approx(1.0)


def test_a_worker_before_its_first_boundary_has_no_pace() -> None:
    assert meter_of((-1, 0.0), (-1, 1.0)).step_time_s == 0.0
