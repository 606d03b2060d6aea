"""One value as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instep.scalar import Scalar, format_scalar, parse_scalar, same, shortened

UTF8 = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | UTF8 | st.none()


@given(SCALARS)
def test_a_value_survives_a_round_trip_through_etcd(value: Scalar) -> None:
    back = parse_scalar(format_scalar(value))
    assert same(back, value)
    assert type(back) is type(value)
    format_scalar(value).encode()


@pytest.mark.parametrize("text", ["{}", "[]", '{"lr": 1}', "[1, 2]"])
def test_more_than_one_value_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not one value"):
        parse_scalar(text)


@pytest.mark.parametrize("text", ["", "high", "0.1.2", "1,5", "True", "None", "NaN", "Infinity", "'x'", "\x00", "1 2"])
def test_text_that_is_not_json_is_refused_with_the_fix(text: str) -> None:
    with pytest.raises(ValueError, match="not JSON: write a number, true, false, null, or text in quotes"):
        parse_scalar(text)


@pytest.mark.parametrize("text", ["1e400", "-1e400"])
def test_a_number_that_no_float_can_hold_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="beyond what a float can hold"):
        parse_scalar(text)


@pytest.mark.parametrize("text", ['"\\ud800"', '"a\\udfff"'])
def test_half_a_surrogate_pair_is_refused_because_etcd_cannot_store_it(text: str) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        parse_scalar(text)


def test_a_character_written_as_a_surrogate_pair_is_accepted() -> None:
    assert parse_scalar('"\\ud83d\\ude00"') == "\N{GRINNING FACE}"


@given(st.text(st.characters()))
def test_any_text_is_one_scalar_or_a_value_error(text: str) -> None:
    try:
        value = parse_scalar(text)
    except ValueError:
        return
    assert value is None or isinstance(value, (bool, int, float, str))


def test_values_of_different_types_are_not_equal() -> None:
    assert same(1, 1.0)
    assert same("a", "a")
    assert same(None, None)
    assert not same(1, True)
    assert not same(0, False)
    assert not same(0, None)
    assert not same("1", 1)


@given(st.text())
def test_a_shortened_text_fits_a_message(text: str) -> None:
    assert len(shortened(text)) <= 60
    assert shortened(text) == text or text.startswith(shortened(text)[:57])
