"""Verdicts, alone and together, and revisions over all keys."""

from __future__ import annotations

import json

import pytest

from instep.testing.checkers import Operation, Reply, Report, Verdict, check_linearizability, check_revisions


def put(at: float, key: str, revision: int | None, length: float = 0.5) -> Operation:
    return Operation("c", "put", key, ("v",), Reply.wrote(revision), at, at + length)


def get(at: float, reply: Reply, length: float = 0.5) -> Operation:
    return Operation("c", "get", "a", (), reply, at, at + length)


GOOD = [put(1, "a", 2), put(2, "b", 3), put(3, "c", 9, 5), put(4, "d", 7), get(5, Reply.found("v", 2, revision=8))]


def test_revisions_that_rise_with_time_over_all_keys_pass() -> None:
    assert check_revisions([*GOOD, put(9, "a", None), get(10, Reply.found("v", 3))]).passed


@pytest.mark.parametrize(
    ("rule", "operation"),
    [
        ("time", put(6, "z", 7)),
        ("time", put(6, "z", 5)),
        ("time", get(6, Reply.absent(revision=6))),
        ("time", put(0, "z", 12)),
        ("unique", put(2, "c", 9, 9)),
    ],
)
def test_each_rule_of_revisions_catches_what_the_other_does_not(rule: str, operation: Operation) -> None:
    verdict = check_revisions([*GOOD, operation])
    assert {violation.rule for violation in verdict.violations} == {rule}


def test_two_keys_of_one_txn_may_have_one_revision() -> None:
    assert check_revisions([put(1, "a", 5), put(1, "b", 5)]).passed


def test_revisions_connect_the_keys_that_linearizability_checks_separately() -> None:
    history = [put(1, "a", 9), put(2, "b", 4)]
    assert check_linearizability(history).passed
    assert not check_revisions(history).passed


def test_a_report_passes_when_every_verdict_is_yes() -> None:
    yes, no, open_ = Verdict("yes", "one", 5), Verdict("no", "two", 5), Verdict("undecided", "three")
    assert Report.of([yes, yes]).passed
    assert Report.of([yes, open_]).answer == "undecided"
    assert Report.of([open_, no, yes]).answer == "no"
    assert not Report.of([]).passed


def test_a_report_can_be_read_by_people_and_by_programs() -> None:
    bad = check_linearizability([put(1, "k", 2), Operation("c", "get", "k", (), Reply.absent(), 2, 3)])
    report = Report.of([Verdict("yes", "exclusion", 3), bad])
    lines = str(report).splitlines()
    assert lines[0] == "exclusion: yes (3 records)"
    assert lines[1] == "linearizability: no (2 records)"
    assert lines[-1] == "verdict: no"
    facts = json.loads(report.to_json())
    assert facts["answer"] == "no"
    assert [verdict["checker"] for verdict in facts["verdicts"]] == ["exclusion", "linearizability"]
    assert facts["verdicts"][1]["violations"][0]["rule"] == "linearizable"
    assert "no such key" in facts["verdicts"][1]["offending"][-1]


def test_many_violations_are_all_counted_and_some_are_kept() -> None:
    verdict = check_revisions(put(n, "a", 5) for n in range(1, 400))
    assert verdict.found == 399
    assert len(verdict.violations) == 50
    assert "and 389 more" in str(verdict)
