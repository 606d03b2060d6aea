"""Values are written short, and never so that they could deceive."""

from __future__ import annotations

import pytest

from instep.control import ValueChange, format_change, format_value, one_line
from instep.scalar import Scalar


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0003, "3e-4"),
        (0.00125, "0.00125"),
        (0.000125, "1.25e-4"),
        (0.5, "0.5"),
        (0.01, "0.01"),
        (-0.0001, "-1e-4"),
        (1.0, "1.0"),
        (10.0, "10.0"),
        (100000.0, "1e5"),
        (12345.678, "12345.678"),
        (1e22, "1e22"),
        (0.0, "0.0"),
        (100000, "100000"),
        (True, "true"),
        (None, "null"),
        ("cosine", "cosine"),
        ("true", '"true"'),
        ("1e-4", '"1e-4"'),
        ("two words", '"two words"'),
        ("", '""'),
    ],
)
def test_a_value_is_written_as_short_as_it_can_be_without_loss(value: Scalar, text: str) -> None:
    assert format_value(value) == text


def test_long_text_is_cut() -> None:
    assert len(format_value("x" * 1000)) == 40


def test_terminal_controls_and_hidden_characters_do_not_reach_a_terminal() -> None:
    assert one_line("a\x1b[2Jb\nc\u202ed\x00") == r"a\x1b[2Jb c\u202ed\x00"
    assert "\x1b" not in format_value("\x1b]0;title\x07")


def test_a_value_that_was_not_set_before_has_no_from() -> None:
    assert format_change(ValueChange("lr", None, 1e-4, was_set=False)) == "lr → 1e-4"
    assert format_change(ValueChange("lr", None, 1e-4)) == "lr null → 1e-4"
