"""The arithmetic under `bind`."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.torch._optim.ratio import ValueKind, anchor_of, kind_of, ratio_of, rebased, share_of, why_unusable

positive = st.floats(1e-8, 1e3)
near = 1e-12


@given(value=positive, default=positive)
def test_a_ratio_times_its_default_is_the_value(value: float, default: float) -> None:
    ratio = ratio_of(value, default)
    assert ratio is not None
    assert math.isclose(share_of(ratio, default, ValueKind.REAL), value, rel_tol=near)


@given(agreed=st.floats(allow_nan=False, allow_infinity=False), default=positive)
def test_a_group_at_the_default_holds_exactly_the_agreed_value(agreed: float, default: float) -> None:
    ratio = ratio_of(default, default)
    assert ratio == 1.0
    assert share_of(ratio, agreed, ValueKind.REAL) == agreed


def test_zero_is_in_ratio_only_to_what_it_equals() -> None:
    assert ratio_of(0.0, 0.0) == 1.0
    assert ratio_of(0.0, 0.1) == 0.0
    assert ratio_of(0.1, 0.0) is None


@given(share=st.floats(0, 10), base=positive, path=st.lists(positive, min_size=1, max_size=6))
def test_a_point_of_a_schedule_survives_any_way_to_a_base(share: float, base: float, path: list[float]) -> None:
    at, value = base, share * base
    for target in path:
        value, at = rebased(value, at, target), target
    assert math.isclose(value, share * path[-1], rel_tol=1e-9, abs_tol=1e-300)


@given(value=positive, base=positive)
def test_a_base_that_does_not_move_changes_no_bit(value: float, base: float) -> None:
    assert rebased(value, base, base) == value


@given(base=positive, target=positive)
def test_a_value_on_its_base_lands_exactly_on_the_new_base(base: float, target: float) -> None:
    assert rebased(base, base, target) == target


def test_a_base_of_zero_counts_as_the_start_of_the_schedule() -> None:
    assert rebased(0.0, 0.0, 0.1) == 0.1


@given(st.lists(st.just(0.0) | positive, max_size=8), positive)
def test_the_anchor_is_the_last_value_that_was_not_zero(agreed: list[float], first: float) -> None:
    anchor = first
    for value in agreed:
        anchor = anchor_of(value, anchor)
    assert anchor == next((value for value in reversed(agreed) if value), first)


@pytest.mark.parametrize(
    ("ratio", "agreed", "kind", "share"),
    [
        (1.0, 10, ValueKind.WHOLE, 10),
        (0.5, 3, ValueKind.WHOLE, 1.5),
        (1.0, 0.01, ValueKind.WHOLE, 0.01),
        (1.0, 2, ValueKind.REAL, 2.0),
        (1.0, True, ValueKind.FLAG, True),
    ],
)
def test_a_share_keeps_the_type_of_its_field_where_that_loses_nothing(
    ratio: float, agreed: float, kind: ValueKind, share: float
) -> None:
    held = share_of(ratio, agreed, kind)
    assert held == share
    assert type(held) is type(share)


def test_only_numbers_and_flags_have_a_kind() -> None:
    assert [kind_of(value) for value in (True, 1, 0.5)] == [ValueKind.FLAG, ValueKind.WHOLE, ValueKind.REAL]
    assert [kind_of(value) for value in (None, "1", (0.9, 0.99))] == [None, None, None]


@pytest.mark.parametrize("value", ["0.1", None, True, math.nan, math.inf])
def test_what_is_no_finite_number_is_unusable_for_a_number(value: object) -> None:
    assert why_unusable(value, ValueKind.REAL)


def test_a_flag_takes_only_a_flag() -> None:
    assert why_unusable(True, ValueKind.FLAG) is None
    assert why_unusable(1, ValueKind.FLAG)
