"""A page on a screen that is too low for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from instep.cli._page import Page, shares


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (100, [6, 9, 12]),
        (22, [6, 4, 12]),
        (16, [6, 4, 6]),
        (12, [6, 0, 6]),
        (8, [6, 0, 0]),
        (5, [5, 0, 0]),
    ],
)
def test_the_head_is_whole_and_the_more_important_section_gets_more(room: int, expected: list[int]) -> None:
    assert shares([6, 9, 12], [0, 2, 1], room) == expected


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 60))
def test_shares_never_take_more_than_there_is(sizes: list[int], room: int) -> None:
    found = shares(sizes, range(len(sizes)), room)
    assert sum(found) <= room
    assert all(share <= size for share, size in zip(found, sizes, strict=True))


def test_a_page_fills_no_more_than_the_screen_and_keeps_its_last_lines() -> None:
    def lines(word: str, count: int) -> Text:
        return Text("\n".join(f"{word} {number}" for number in range(count)))

    page = Page(lines("head", 6), [lines("value", 20), lines("recent", 9)], [1, 0], lines("foot", 2))
    console = Console(width=80, height=24)
    with console.capture() as capture:
        console.print(page)
    shown = capture.get().splitlines()
    assert len(shown) == 24
    assert shown[:6] == [f"head {number}" for number in range(6)]
    assert shown[12].strip() == "…"
    assert shown[-3:] == ["recent 8", "foot 0", "foot 1"]
