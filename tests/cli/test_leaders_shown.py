"""What `instep history` prints of take-overs."""

from __future__ import annotations

from rich.console import Console

from instep.cli._output import facts_console, plain
from instep.cli._tables import LEADER_CHANGES_SHOWN, leader_changes, leaders_table
from instep.control import TermReport
from instep.protocol.records import CAME_FIRST


def leading(term: int, why: str | None, former: int | None) -> TermReport:
    return TermReport(
        term=term,
        rank=term,
        node="n",
        host="host-a",
        token=7,
        since="2026-01-01T00:00:00+00:00",
        former_rank=former,
        former_host="host-b" if former is not None else None,
        why=why,
    )


def test_a_take_over_is_one_line_with_who_led_before_and_why_no_more() -> None:
    page = plain(
        Console(width=160, markup=False), leaders_table([leading(2, "its process died", 1), leading(3, None, 2)])
    )
    assert "rank 2 on host-a leads; before it rank 1 on host-b (its process died)" in page
    assert "rank 3 on host-a leads; before it rank 2 on host-b (not known why)" in page


def test_what_another_wrote_cannot_move_the_cursor() -> None:
    page = plain(facts_console(), leaders_table([leading(2, "its \x1b[2J process", 1)]))
    assert "\x1b" not in page


def test_the_start_of_a_run_is_no_take_over_and_a_long_history_is_cut() -> None:
    assert leader_changes([leading(2, CAME_FIRST, 1), leading(1, None, None)]) == []
    assert (
        len(leader_changes([leading(term, "it left", term - 1) for term in range(30, 1, -1)])) == LEADER_CHANGES_SHOWN
    )
