"""Exclusion and fencing: each rule on good records, and on a bad one that no other rule catches."""

from __future__ import annotations

import math

import pytest

from instep.errors import SettingsError
from instep.testing.checkers import Accepted, Hold, Verdict, check_exclusion, check_fencing


def rules(verdict: Verdict) -> set[str]:
    return {violation.rule for violation in verdict.violations}


def hold(holder: str, token: int, since: float, until: float | None, valid_until: float | None = None) -> Hold:
    return Hold("lock", holder, token, since, until, valid_until)


def test_one_after_the_other_is_exclusion() -> None:
    holds = [hold("c", 9, 5, None), hold("a", 3, 1, 2, 4), hold("b", 7, 2, 5, 5)]
    assert check_exclusion(holds).passed
    assert check_exclusion([*holds, Hold("other", "d", 1, 1.5, 9)]).passed


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("unique", [hold("a", 3, 1, 2), hold("b", 3, 3, 4)]),
        ("rising", [hold("a", 3, 1, 2), hold("b", 2, 3, 4)]),
        ("valid", [hold("a", 3, 1, 5, 4), hold("b", 4, 6, 7)]),
        ("valid", [hold("a", 3, 1, None, 4)]),
        ("alone", [hold("a", 3, 1, 3), hold("b", 4, 2, 4)]),
        ("alone", [hold("a", 3, 1, None), hold("b", 4, 2, 4)]),
        ("alone", [hold("a", 3, 1, 9), hold("a", 4, 9, 10), hold("b", 5, 9.5, 11)]),
        ("alone", [hold("a", 3, 1, 9), hold("b", 4, 2, 3), hold("c", 5, 4, 5)]),
    ],
)
def test_each_rule_of_exclusion_catches_what_no_other_does(rule: str, holds: list[Hold]) -> None:
    verdict = check_exclusion(holds)
    assert verdict.answer == "no"
    assert rules(verdict) == {rule}


def test_a_long_hold_conflicts_with_all_later_holds() -> None:
    assert check_exclusion([hold("a", 3, 1, 9), hold("b", 4, 2, 3), hold("c", 5, 4, 5)]).found == 2


def test_a_declared_overlap_is_allowed() -> None:
    holds = [hold("a", 3, 1, 3, 2.8), hold("b", 4, 2.75, 4)]
    assert check_exclusion(holds, overlap_s=0.25).passed
    assert not check_exclusion(holds, overlap_s=0.24).passed
    assert check_exclusion([hold("a", 3, 1, None), hold("b", 4, 2, None)], overlap_s=math.inf).passed
    assert not check_exclusion([hold("a", 4, 1, None), hold("b", 3, 2, None)], overlap_s=math.inf).passed


def test_a_hold_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(SettingsError):
        hold("a", 1, 2, 1)


def test_an_empty_history_of_leaders_is_undecided() -> None:
    assert check_exclusion([]).answer == check_fencing([]).answer == "undecided"


def test_tokens_that_never_fall_are_fenced() -> None:
    accepted = [
        Accepted("store", "a", 3),
        Accepted("store", "a", 3),
        Accepted("other", "b", 1),
        Accepted("store", "b", 5),
    ]
    assert check_fencing(accepted).passed


@pytest.mark.parametrize(
    ("rule", "tokens"),
    [("fenced", [("a", 3), ("b", 5), ("a", 3)]), ("one owner", [("a", 3), ("b", 3)])],
)
def test_each_rule_of_fencing_catches_what_no_other_does(rule: str, tokens: list[tuple[str, int]]) -> None:
    assert rules(check_fencing(Accepted("store", holder, token) for holder, token in tokens)) == {rule}


def test_after_a_stale_write_the_highest_token_still_counts() -> None:
    verdict = check_fencing(Accepted("store", holder, token) for holder, token in [("b", 5), ("a", 3), ("c", 4)])
    assert verdict.found == 2


@pytest.mark.parametrize("overlap_s", [-1.0, math.nan])
def test_an_overlap_that_no_two_holds_could_exceed_is_refused(overlap_s: float) -> None:
    with pytest.raises(SettingsError, match="at least 0"):
        check_exclusion([Hold("lock", "a", 1, 0.0, 5.0), Hold("lock", "b", 2, 1.0, 5.0)], overlap_s=overlap_s)
