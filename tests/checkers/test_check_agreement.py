"""Steps and changes: each rule on good records, and on a bad one that no other rule catches."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instep.errors import SettingsError
from instep.scalar import Scalar
from instep.testing.checkers import (
    Commit,
    ConfigRun,
    Desired,
    Verdict,
    check_changes,
    check_commits,
    check_steps,
    config_digest,
)
from instep.testing.checkers.stepmap import StepMap, StepRange

Pairs = tuple[tuple[str, Scalar], ...]


def run(rank: int, first: int, last: int, digest: str, life: int = 0) -> ConfigRun:
    return ConfigRun(rank, first, last, digest, life)


def rules(verdict: Verdict) -> set[str]:
    return {violation.rule for violation in verdict.violations}


def commit(plan: int, gate: int, life: int = 0, *, revision: int = 0, **values: Scalar) -> Commit:
    return Commit(plan, gate, revision or plan * 10, tuple(values.items()), life)


# -- steps -----------------------------------------------------------------------------------------------------------


def test_ranks_that_change_at_the_same_step_agree() -> None:
    runs = [run(0, 0, 9, "a"), run(1, 0, 4, "a"), run(0, 10, 30, "b"), run(1, 5, 9, "a"), run(1, 10, 12, "b")]
    assert check_steps(runs).passed


@pytest.mark.parametrize(
    ("runs", "where"),
    [
        ([run(0, 0, 9, "a"), run(0, 10, 30, "b"), run(1, 0, 10, "a")], "step 10:"),
        ([run(0, 0, 30, "a"), run(1, 0, 9, "a"), run(1, 10, 30, "b")], "steps 10 to 30:"),
        ([run(0, 0, 9, "a"), run(0, 10, 20, "b"), run(0, 8, 9, "b")], "steps 8 to 9:"),
        ([run(0, 0, 5, "a", 1), run(1, 5, 5, "b", 1)], "step 5:"),
    ],
)
def test_a_step_with_two_configs_is_found(runs: list[ConfigRun], where: str) -> None:
    verdict = check_steps(runs)
    assert rules(verdict) == {"one config"}
    assert verdict.violations[0].sentence.startswith(where)


def test_repeated_steps_must_have_the_config_of_the_first_time() -> None:
    before = [run(0, 0, 9, "a"), run(0, 10, 19, "b"), run(0, 20, 30, "c")]
    assert check_steps([*before, run(0, 15, 19, "b", 1), run(0, 20, 40, "c", 1)]).passed
    assert rules(check_steps([*before, run(0, 5, 19, "b", 1)])) == {"as before"}


def test_a_process_must_match_the_first_configs_only_from_the_declared_step() -> None:
    runs = [run(0, 0, 9, "a"), run(0, 10, 19, "b"), run(0, 5, 19, "b", 1), run(1, 5, 19, "b", 1)]
    assert check_steps(runs, exact_from={1: 10}).passed
    assert not check_steps(runs, exact_from={1: 9}).passed
    assert not check_steps([*runs, run(2, 5, 19, "a", 1)], exact_from={1: 20}).passed


def test_a_third_process_must_match_the_second() -> None:
    runs = [run(0, 0, 9, "a"), run(0, 5, 9, "b", 1), run(0, 5, 9, "b", 2), run(0, 0, 4, "a", 2)]
    assert check_steps(runs, exact_from={1: 10}).passed
    assert not check_steps([*runs, run(0, 5, 9, "a", 3)], exact_from={1: 10}).passed


def test_an_hour_of_six_ranks_is_judged() -> None:
    """Two million steps per rank, three thousand changes, recorded in pieces of about fifty steps."""
    rng = random.Random(1)
    gates = sorted(rng.sample(range(2_000_000), 3000))

    def pieces(rank: int) -> list[ConfigRun]:
        edges = sorted({0, 2_000_000, *gates, *(rng.randrange(2_000_000) for _ in range(5000))})
        place = {gate: n for n, gate in enumerate(gates)}
        found, config = [], -1
        for first, after in pairwise(edges):
            config = place.get(first, config)
            found.append(run(rank, first, after - 1, f"config {config}"))
        return found

    runs = [piece for rank in range(6) for piece in pieces(rank)]
    assert check_steps(runs).passed
    late = run(6, gates[7] - 1, gates[7], "config 6")
    assert check_steps([*runs, late]).found == 1


def test_a_run_of_steps_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(SettingsError):
        run(0, 5, 4, "a")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 12), st.sampled_from("abc"), st.booleans()), max_size=25))
def test_a_step_map_equals_a_table_of_steps(changes: list[tuple[int, int, str, bool]]) -> None:
    steps, table = StepMap(), dict[int, str]()
    for first, length, digest, over in changes:
        covered = range(first, first + length + 1)
        new = StepRange(first, covered[-1], digest, None)
        if over:
            steps.overlay(new)
            table.update(dict.fromkeys(covered, digest))
        else:
            conflicts = {step for s in steps.fill(new) for step in range(s.first, s.last + 1)}
            assert conflicts == {step for step in covered if table.get(step, digest) != digest}
            table = dict.fromkeys(covered, digest) | table
        assert {step: s.digest for s in steps for step in range(s.first, s.last + 1)} == table
        joined = [(s.last + 1, s.digest) for s in steps]
        assert not {(s.first, s.digest) for s in steps} & set(joined)


# -- commits ---------------------------------------------------------------------------------------------------------

A, B, C = (config_digest({"lr": lr}) for lr in (1, 2, 3))
COMMITS = [commit(0, 0, lr=1), commit(1, 10, lr=2), commit(2, 20, lr=3)]


def test_steps_run_as_agreed_pass() -> None:
    assert check_commits(COMMITS, [run(0, 0, 9, A), run(0, 10, 19, B), run(1, 15, 19, B), run(1, 20, 99, C)]).passed


def test_ranks_that_missed_a_change_together_are_found() -> None:
    together = [run(rank, 0, 99, A) for rank in (0, 1)]
    assert check_steps(together).passed
    verdict = check_commits(COMMITS, together)
    assert rules(verdict) == {"as agreed"}
    assert verdict.found == 4


def test_after_a_restore_the_later_plan_applies_from_its_gate_on() -> None:
    commits = [*COMMITS, commit(3, 14, 1, lr=1)]
    back = [run(0, 0, 9, A), run(0, 10, 19, B), run(0, 20, 99, C), run(0, 12, 13, B, 1), run(0, 14, 120, A, 1)]
    assert check_commits(commits, back).passed
    assert not check_commits(commits, [run(0, 14, 30, C, 1)]).passed
    assert not check_commits(commits, [run(0, 12, 13, C, 1)]).passed
    assert not check_commits(commits, [run(0, 14, 30, A)]).passed
    assert check_commits(commits, [run(0, 121, 130, A, 2)]).passed


def test_steps_that_a_process_need_not_match_are_not_checked() -> None:
    back = [run(0, 5, 19, B, 1), run(0, 20, 30, C, 1)]
    assert not check_commits(COMMITS, back).passed
    assert check_commits(COMMITS, back, exact_from={1: 10}).passed


def test_a_history_without_commits_is_undecided() -> None:
    assert check_commits([], [run(0, 0, 1, A)]).answer == "undecided"
    assert check_commits(COMMITS, []).answer == "undecided"


def test_a_digest_names_the_values_and_nothing_else() -> None:
    assert config_digest({"a": 1, "b": 2.0}) == config_digest({"b": 2, "a": 1.0})
    digests = [config_digest({"a": value}) for value in (1, True, "1", None, 1.5)]
    assert len(set(digests)) == len(digests)


# -- changes ---------------------------------------------------------------------------------------------------------

START = {"lr": 1, "clip": 5}


def desired(*items: tuple[str, int, Scalar]) -> list[Desired]:
    return [Desired(*item) for item in items]


def changes(
    wanted: list[Desired], commits: list[Commit], initial: dict[str, Scalar] | None = None, **final: Scalar
) -> Verdict:
    return check_changes(wanted, commits, {0: final, 1: final}, initial=START if initial is None else initial)


def test_changes_applied_in_order_pass() -> None:
    wanted = desired(("lr", 12, 2), ("clip", 12, 6), ("lr", 14, 3))
    plans = [
        commit(0, 0, lr=1, clip=5),
        commit(1, 9, revision=12, lr=2, clip=6),
        commit(2, 20, revision=14, lr=3, clip=6),
    ]
    assert changes(wanted, plans, lr=3, clip=6).passed
    assert changes(wanted, plans, {}, lr=3, clip=6).passed


def test_a_value_overwritten_before_it_was_planned_is_superseded() -> None:
    wanted = desired(("lr", 12, 2), ("clip", 12, 6), ("lr", 14, 3))
    plans = [
        commit(0, 0, lr=1, clip=5),
        commit(1, 9, revision=12, lr=1, clip=6),
        commit(2, 20, revision=14, lr=3, clip=6),
    ]
    assert changes(wanted, plans, lr=3, clip=6).passed


def test_a_value_requested_twice_counts_as_the_later_request_if_that_fits() -> None:
    wanted = desired(("lr", 12, 2), ("clip", 12, 6), ("lr", 13, 3), ("lr", 19, 2))
    plans = [
        *(commit(0, 0, lr=1, clip=5), commit(1, 9, revision=12, lr=1, clip=6)),
        *(commit(2, 15, revision=13, lr=3, clip=6), commit(3, 20, revision=19, lr=2, clip=6)),
    ]
    assert changes(wanted, plans, lr=2, clip=6).passed


def test_requesting_the_present_value_needs_no_plan() -> None:
    assert changes(desired(("lr", 12, 1)), [commit(0, 0, lr=1, clip=5)], lr=1, clip=5).passed


def test_a_rejected_value_needs_no_plan_and_gets_none() -> None:
    wanted = [Desired("lr", 12, -1, valid=False)]
    assert changes(wanted, [commit(0, 0, lr=1)], lr=1).passed
    verdict = changes(wanted, [commit(0, 0, lr=1), commit(1, 5, revision=12, lr=-1)], lr=-1)
    assert rules(verdict) == {"asked for"}


@pytest.mark.parametrize(
    ("rule", "wanted", "commits", "final"),
    [
        ("not lost", desired(("lr", 12, 2)), [commit(0, 0, lr=1)], {"lr": 2}),
        ("last holds", desired(("lr", 12, 2)), [commit(0, 0, lr=1), commit(1, 5, revision=12, lr=2)], {"lr": 1}),
        ("last holds", desired(("lr", 12, 2)), [commit(0, 0, lr=1), commit(1, 5, revision=12, lr=2)], {}),
        (
            "in order",
            desired(("lr", 12, 2), ("lr", 13, 3)),
            [*(commit(0, 0, lr=1), commit(1, 5, revision=12, lr=2), commit(2, 6, revision=13, lr=3)),
             *(commit(3, 8, revision=14, lr=2), commit(4, 9, revision=15, lr=3))],
            {"lr": 3},
        ),
        (
            "in order",
            desired(("lr", 12, 2)),
            [*(commit(0, 0, lr=1), commit(1, 5, revision=12, lr=2)),
             *(commit(3, 8, revision=14, lr=1), commit(4, 9, revision=15, lr=2))],
            {"lr": 2},
        ),
        (
            "together",
            desired(("lr", 12, 2), ("clip", 12, 6)),
            [commit(0, 0, lr=1, clip=5), commit(1, 5, revision=12, lr=2, clip=5),
             commit(2, 6, revision=12, lr=2, clip=6)],
            {"lr": 2, "clip": 6},
        ),
        (
            "asked for",
            desired(("lr", 12, 2)),
            [commit(0, 0, lr=1), commit(1, 5, revision=12, lr=7), commit(2, 5, revision=12, lr=2)],
            {"lr": 2},
        ),
        (
            "asked for",
            desired(("lr", 12, 2)),
            [commit(0, 0, lr=1), commit(1, 5, revision=11, lr=2), commit(2, 6, revision=12, lr=2)],
            {"lr": 2},
        ),
    ],
)  # fmt: skip
def test_each_rule_of_changes_catches_what_no_other_does(
    rule: str, wanted: list[Desired], commits: list[Commit], final: dict[str, Scalar]
) -> None:
    verdict = changes(wanted, commits, **final)
    assert verdict.answer == "no"
    assert rules(verdict) == {rule}, str(verdict)


def test_a_history_without_final_values_is_undecided() -> None:
    assert check_changes(desired(("lr", 12, 1)), [commit(0, 0, lr=1)], {}, initial=START).answer == "undecided"


def test_thousands_of_changes_are_judged() -> None:
    wanted = [Desired(f"n{n % 4}", n + 10, n) for n in range(8000)]
    values: dict[str, Scalar] = {f"n{k}": -1 for k in range(4)}
    plans = [Commit(0, 0, 1, tuple(values.items()))]
    for item in wanted:
        values[item.name] = item.value
        plans.append(Commit(item.revision, item.revision, item.revision, tuple(values.items())))
    assert check_changes(wanted, plans, {0: values}).passed
