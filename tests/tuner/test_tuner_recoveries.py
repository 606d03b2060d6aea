"""Runs that are ill in some way, and what the tuner does about it, until they are well or a person has to look."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from simulated_run import SimulatedRun, Tuned, bad_data, past_of, settings, too_high_lr

from instep.tuner.rule_file import read_rules
from instep.tuner.sample import Event, Past, Sample


@pytest.mark.parametrize("resolution", [1, 4, 10])
def test_bad_data_is_passed_over_with_one_recovery(resolution: int) -> None:
    run = SimulatedRun(bad_data(300, 340), resolution=resolution)
    tuned = Tuned(run).steps(600, each=resolution)
    (action,) = tuned.actions
    assert (action.kind, action.rule, action.checkpoint_step) == ("recover", "spike", 249)
    assert 295 <= action.suspect <= 300
    after = run.read[run.read.index(action.skipped_to or 0) :]
    assert not set(range(300, 341)) & set(after)
    assert after == list(range(after[0], after[0] + len(after))), "no gap, and nothing twice"
    assert [judged.judgement for verdict in tuned.verdicts for judged in verdict.judged] == ["verified"]


def test_a_change_that_ruins_the_run_is_taken_back_by_the_recovery() -> None:
    run = SimulatedRun(too_high_lr(0.05))
    tuned = Tuned(run).steps(300)
    run.change(lr=0.3)
    tuned.steps(300)
    (action,) = tuned.actions
    assert action.kind == "recover"
    assert action.changes == {"lr": (0.3, 0.01)}
    assert action.takes_back == (1,)
    assert run.values["lr"] == 0.01
    assert run.damage == 0


def test_weights_that_are_not_finite_are_recovered_at_once() -> None:
    run = SimulatedRun(lambda run: math.nan if run.index == 300 else 0.0)
    tuned = Tuned(run).steps(500)
    (action,) = tuned.actions
    assert (action.rule, action.step, action.suspect) == ("nonfinite", 300, 300)
    assert math.isfinite(run.damage)


def slow_rise(by: float) -> SimulatedRun:
    return SimulatedRun(lambda run: (by if run.values["lr"] == 0.02 else 0.0) - run.damage)


def test_a_slow_rise_after_a_change_is_taken_back_in_place() -> None:
    run = slow_rise(0.07)
    tuned = Tuned(run).steps(300)
    run.change(lr=0.02)
    tuned.steps(300)
    (action,) = tuned.actions
    assert (action.kind, action.rule, action.changes) == ("take_back", "level", {"lr": (0.02, 0.01)})
    assert action.checkpoint is None
    assert run.step == 599, "the run did not go back"


def test_a_rise_that_has_damaged_the_weights_is_recovered_and_the_change_taken_back_in_one_plan() -> None:
    run = slow_rise(0.17)
    tuned = Tuned(run).steps(300)
    run.change(lr=0.02)
    tuned.steps(400)
    (action,) = tuned.actions
    assert (action.kind, action.rule, action.changes) == ("recover", "level", {"lr": (0.02, 0.01)})
    assert 280 <= action.suspect <= 300
    assert action.checkpoint_step == 249


def test_a_fault_that_stays_is_met_by_older_checkpoints_a_lower_lr_and_then_a_pause() -> None:
    run = SimulatedRun(lambda run: 0.5 if run.step >= 130 else 0.0)
    tuned = Tuned(run).steps(1500)
    assert tuned.kinds == ["recover", "recover", "pause"]
    first, second, last = tuned.actions
    assert (first.checkpoint_step, second.checkpoint_step) == (99, 49)
    assert first.changes == {}
    assert second.changes == {"lr": (0.01, 0.005)}
    assert run.paused
    assert "pause for a person" in last.reason


def test_a_run_that_is_ill_again_after_the_pause_waits_for_a_person() -> None:
    run = SimulatedRun(lambda run: 0.5 if run.step >= 130 else 0.0)
    tuned = Tuned(run).steps(1500)
    run.paused = False
    tuned.steps(80)
    assert tuned.kinds == ["recover", "recover", "pause"]
    assert "waits for a person" in tuned.brakes("spike")


def test_a_fault_right_after_a_restore_is_found_although_history_was_dropped() -> None:
    """A restored checkpoint gives values that are not finite three steps later."""
    run = SimulatedRun(lambda run: math.nan if run.step in (253, 300) else 0.0)
    tuned = Tuned(run).steps(240)
    tuned.steps(400)
    used = [action.checkpoint for action in tuned.actions if action.checkpoint]
    assert len(used) == len(set(used)), "no checkpoint is restored twice for one place"
    assert len(tuned.actions) <= 3


def test_the_same_weights_that_fail_again_and_again_end_in_a_pause() -> None:
    run = SimulatedRun(lambda run: math.nan if run.step % 50 == 3 and run.step >= 103 else 0.0)
    tuned = Tuned(run).steps(2000)
    assert tuned.kinds == ["recover", "pause"] or tuned.kinds == ["recover", "recover", "pause"]
    assert run.paused


def test_two_faults_far_apart_are_two_incidents() -> None:
    def fault(run: SimulatedRun) -> float:
        return (1.3 if 300 <= run.index <= 330 or 1200 <= run.index <= 1230 else 0.0) - run.damage

    run = SimulatedRun(fault)
    tuned = Tuned(run).steps(1600)
    assert tuned.kinds == ["recover", "recover"]
    assert all(action.changes == {} for action in tuned.actions)
    assert (tuned.actions[1].skipped_to or 0) > 1230


def test_a_recovery_to_an_older_checkpoint_does_not_read_what_was_skipped_before() -> None:
    run = SimulatedRun(lambda run: 0.5 if run.step >= 130 else 0.0)
    tuned = Tuned(run).steps(400)
    one, two = tuned.actions[:2]
    assert one.skipped_to is not None
    assert two.skipped_to is not None
    assert two.skipped_to >= one.skipped_to


def test_a_run_without_data_offset_is_paused() -> None:
    run = SimulatedRun(bad_data(300, 340), values={"lr": 0.01})
    tuned = Tuned(run).steps(400)
    assert tuned.kinds == ["pause"]
    assert "instep.data_offset()" in tuned.actions[0].reason


def test_a_run_without_data_offset_is_recovered_when_a_change_explains_the_fault() -> None:
    run = SimulatedRun(too_high_lr(0.05), values={"lr": 0.01})
    tuned = Tuned(run).steps(300)
    run.change(lr=0.3)
    tuned.steps(200)
    assert tuned.kinds == ["recover"]
    assert tuned.actions[0].offset is None


def test_a_run_without_checkpoints_is_paused() -> None:
    tuned = Tuned(SimulatedRun(bad_data(300, 340), every=10_000)).steps(400)
    assert tuned.kinds == ["pause"]
    assert "no usable checkpoint" in tuned.actions[0].reason


def test_a_run_without_checkpoints_gets_a_change_taken_back_before_it_is_paused() -> None:
    run = SimulatedRun(too_high_lr(0.05), every=10_000)
    tuned = Tuned(run).steps(300)
    run.change(lr=0.3)
    tuned.steps(200)
    assert tuned.kinds == ["take_back", "pause"]


def test_a_gradient_spike_before_the_loss_rises_is_suspect_too() -> None:
    def fault(run: SimulatedRun) -> float:
        return 0.6 if run.index == 300 else 0.3 if 304 <= run.index <= 307 else 0.0

    run = SimulatedRun(fault, noise=0.2)
    tuned = Tuned(run).steps(330)
    assert tuned.actions[0].suspect == 300


def test_a_checkpoint_that_is_not_finite_is_not_restored() -> None:
    run = SimulatedRun(bad_data(300, 340))
    run.context = lambda sample: _with(sample, bad=249)
    tuned = Tuned(run).steps(350)
    assert tuned.actions[0].checkpoint_step == 199


def _with(sample: Sample, bad: int) -> Sample:
    items = tuple(replace(item, finite=item.step != bad) for item in sample.checkpoints)
    return replace(sample, checkpoints=items)


def test_checkpoints_of_the_steps_that_were_taken_back_are_not_used() -> None:
    """They were saved while the run was ill, or on the way there."""
    run = SimulatedRun(bad_data(300, 330), every=10)
    tuned = Tuned(run).steps(340)
    taken = {action.checkpoint for action in tuned.actions}
    assert tuned.state.abandoned
    assert not taken & set(tuned.state.abandoned)


def test_the_checkpoints_before_the_first_suspect_step_are_pinned_until_the_recovery_is_judged() -> None:
    tuned = Tuned(SimulatedRun(bad_data(300, 340))).steps(305)
    found = tuned.verdicts[-1]
    assert found.action is not None
    assert (found.suspect, found.pins) == (300, ("249-4", "199-3"))
    tuned.steps(60)
    assert (tuned.verdicts[-1].suspect, tuned.verdicts[-1].pins) == (None, ("249-4", "199-3"))
    tuned.steps(60)
    assert tuned.verdicts[-1].pins == ()


def test_a_restart_from_an_older_checkpoint_abandons_the_newer_ones() -> None:
    run = SimulatedRun(every=20)
    tuned = Tuned(run).steps(110)
    run.step, run.damage = 59, 0.0
    run.events.append(Event(kind="view", step=60))
    tuned.steps(1)
    assert tuned.state.abandoned == ("79-3", "99-4")


def test_points_that_are_seen_twice_abandon_no_checkpoint() -> None:
    run = SimulatedRun(every=20)
    tuned = Tuned(run).steps(110)
    run.step = 95
    tuned.steps(10)
    assert tuned.state.abandoned == ()


def test_a_skip_that_the_schema_forbids_becomes_a_pause() -> None:
    tuned = Tuned(SimulatedRun(bad_data(300, 340), maximum={"skip": 100})).steps(350)
    assert tuned.kinds == ["pause"]
    assert "the limit is 100 for skip" in tuned.actions[0].reason


def test_a_value_below_the_bound_of_the_rule_file_is_not_set() -> None:
    run = SimulatedRun(too_high_lr(0.05))
    tuned = Tuned(run, read_rules("[bounds.lr]\nmin = 0.1")).steps(300)
    run.change(lr=0.3)
    tuned.steps(100)
    assert tuned.kinds == ["pause"]
    assert "lr 0.01 is not allowed: the limit is 0.1" in tuned.actions[0].reason


def test_a_learning_rate_that_was_lowered_is_never_raised_again() -> None:
    run = SimulatedRun(bad_data(305, 340))
    tuned = Tuned(run).steps(300)
    run.change(lr=0.001)
    tuned.steps(200)
    assert [action.changes for action in tuned.actions] == [{}]
    assert run.values["lr"] == 0.001


def test_a_cut_that_does_not_help_is_reverted() -> None:
    rules = read_rules('[rules.plateau]\naction = "cut_lr"\nfor = 200\nfall = 0.5')
    run = SimulatedRun()
    tuned = Tuned(run, rules).steps(800)
    assert tuned.kinds == ["cut_lr", "revert"]
    assert run.values["lr"] == 0.01
    assert next(item.judgement for verdict in tuned.verdicts for item in verdict.judged) == "not helped"


def test_a_cut_that_a_person_has_changed_since_is_not_reverted() -> None:
    rules = read_rules('[rules.plateau]\naction = "cut_lr"\nfor = 200\nfall = 0.5')
    run = SimulatedRun()
    tuned = Tuned(run, rules)
    while not tuned.actions:
        tuned.steps(1)
    run.change(lr=0.002)
    tuned.steps(300)
    assert tuned.kinds == ["cut_lr"]
    assert run.values["lr"] == 0.002


def test_a_successor_restores_no_checkpoint_twice_and_has_no_new_budget() -> None:
    run = SimulatedRun(lambda run: 0.5 if run.step >= 130 else 0.0)
    first = Tuned(run).steps(200)
    second = Tuned(run, settings(budget_per_run=3))
    run.journal = [past_of(action) for action in first.actions]
    second.steps(600)
    used = [action.checkpoint for action in (*first.actions, *second.actions) if action.checkpoint]
    assert len(used) == len(set(used))
    assert len(first.actions) + len(second.actions) == 3


def test_a_successor_counts_actions_of_long_ago_for_the_run_only() -> None:
    run = SimulatedRun(bad_data(2000, 2040), step=1800)
    past = Past(id="20-1", rule="spike", kind="recover", step=20, suspect=18, outcome="done", judgement="verified")
    run.journal = [replace(past, id=f"20-{number}") for number in range(5)]
    tuned = Tuned(run).steps(1)
    assert tuned.verdicts[-1].budget_left == 3
    assert tuned.verdicts[-1].judged == ()
    tuned.steps(300)
    assert tuned.kinds == ["recover"]


def test_a_recovery_that_a_person_interfered_with_is_not_judged_as_a_success() -> None:
    run = SimulatedRun(bad_data(300, 340))
    tuned = Tuned(run).steps(320)
    run.change(lr=0.005)
    tuned.steps(150)
    assert [item.judgement for verdict in tuned.verdicts for item in verdict.judged] == ["unsure"]


def test_a_person_who_restores_by_hand_takes_the_change_along() -> None:
    """The change still holds after the restore, so it is the cause if the run is ill again."""
    run = SimulatedRun(too_high_lr(0.05))
    tuned = Tuned(run, armed=()).steps(300)
    run.change(lr=0.3)
    tuned.steps(5)
    run.restore(next(name for name, (step, _) in run.checkpoints.items() if step == 249))
    assert isinstance(run.events[-1], Event)
    tuned.steps(20)
    (spike,) = [rule for rule in tuned.verdicts[-1].rules if rule.rule == "spike"]
    assert spike.wants is not None
    assert spike.wants.changes == {"lr": (0.3, 0.01)}
    assert (spike.wants.checkpoint_step or 0) <= 230


@pytest.mark.parametrize("seed", range(6))
def test_healthy_runs_are_left_alone(seed: int) -> None:
    resolution = (1, 3, 10)[seed % 3]
    run = SimulatedRun(seed=seed, resolution=resolution, noise=0.02 + 0.04 * (seed % 2))
    tuned = Tuned(run).steps(1500, each=30)
    assert tuned.actions == []
    steps = [verdict.step for verdict in tuned.verdicts]
    assert all(early < late for early, late in pairwise(steps))
