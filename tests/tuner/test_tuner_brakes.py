"""Each brake holds an action back, says so with its figure and limit, and lets go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from simulated_run import SimulatedRun, Tuned, bad_data, settings

from instep.tuner import texts
from instep.tuner.rule_file import read_rules
from instep.tuner.sample import Event, Past, Sample
from instep.tuner.verdict import BrakeName

Change = Callable[[Sample], Sample]


def changed(**fields: Any) -> Change:
    return lambda sample: replace(sample, **fields)


def ill(context: Change | None = None, **kwargs: Any) -> Tuned:
    """A run that is in the middle of a long stretch of bad data."""
    run = SimulatedRun(bad_data(300, 10_000))
    tuned = Tuned(run, **kwargs).steps(300)
    if context is not None:
        run.context = context
    return tuned


@pytest.mark.parametrize(
    ("fields", "brake", "sentence"),
    [
        ({"silenced": True}, "silenced", "a person has switched the tuner off"),
        ({"paused": True}, "paused", "the run is paused"),
        ({"age_s": 11.0}, "stale", "the oldest report is 11 s old (limit 10 s)"),
        ({"age_s": float("nan")}, "stale", "the oldest report is nan s old (limit 10 s)"),
        ({"world_size": 8, "reporting": 3}, "partial", "only 0.375 of the ranks report (limit 0.5)"),
        ({"world_size": 0, "reporting": 0}, "partial", "only 0 of the ranks report (limit 0.5)"),
        ({"others_ill": 2}, "others ill", "2 other runs are ill at the same time: the cause is not in this run"),
    ],
)
def test_a_sample_that_is_not_to_be_trusted_holds_every_action(
    fields: dict[str, Any], brake: BrakeName, sentence: str
) -> None:
    tuned = ill(changed(**fields)).steps(30)
    assert tuned.actions == []
    (spike,) = [rule for rule in tuned.verdicts[-1].rules if rule.rule == "spike"]
    (held,) = spike.brakes
    assert held.name == brake
    assert texts.brake(held).startswith(sentence)
    tuned.run.context = lambda sample: sample
    tuned.steps(12)
    assert len(tuned.actions) == 1


def test_a_rule_that_is_not_armed_says_what_it_would_do() -> None:
    tuned = ill(armed=("level",)).steps(10)
    assert tuned.actions == []
    (spike,) = [rule for rule in tuned.verdicts[-1].rules if rule.rule == "spike"]
    assert [held.name for held in spike.brakes] == ["shadow"]
    assert spike.wants is not None
    assert spike.wants.kind == "recover"
    line = texts.rule(spike)
    assert line.startswith("spike (shadow): fired: loss rose from 2.")
    assert "wants: go back to checkpoint 249-4, pass over" in line
    assert line.endswith("held back: shadow mode: the rule is not armed (--act spike)")


@pytest.mark.parametrize(
    ("event", "why"),
    [
        (Event(kind="view", step=300), "a view change"),
        (Event(kind="plan", step=300, plan=1, changes={"clip": (1.0, 2.0)}, author="anna"), "a person's change"),
    ],
)
def test_an_event_holds_actions_off_for_some_steps(event: Event, why: str) -> None:
    tuned = ill()
    tuned.run.events.append(event)
    tuned.steps(6)
    assert tuned.actions == []
    (spike,) = [rule for rule in tuned.verdicts[-1].rules if rule.rule == "spike"]
    assert texts.brake(spike.brakes[0]) == f"6 steps since {why}; it waits for 10 steps"
    tuned.steps(5)
    assert len(tuned.actions) == 1


def test_another_view_is_noticed_without_an_event() -> None:
    tuned = ill(changed(view=2)).steps(6)
    assert tuned.brakes("spike") == ["hold-off"]


def test_a_resume_holds_actions_off() -> None:
    tuned = ill(changed(paused=True)).steps(8)
    tuned.run.context = lambda sample: sample
    tuned.steps(2)
    assert tuned.brakes("spike") == ["hold-off"]


def test_a_restore_holds_actions_off() -> None:
    tuned = ill().steps(2)
    tuned.run.restore("249-4")
    tuned.steps(9)
    assert tuned.actions == []


def test_an_action_is_followed_by_a_cool_down() -> None:
    run = SimulatedRun(lambda run: 0.5 if run.step >= 130 else 0.0)
    tuned = Tuned(run, settings(cool_down_steps=60)).steps(400)
    first, second = [verdict for verdict in tuned.verdicts if verdict.action is not None][:2]
    between = tuned.verdicts[tuned.verdicts.index(first) + 1 : tuned.verdicts.index(second) + 1]
    assert len(between) >= 60


def test_no_second_action_while_the_outcome_of_the_first_is_unknown() -> None:
    tuned = ill(obeys=False).steps(120)
    assert len(tuned.actions) == 1
    assert tuned.brakes("spike") == ["open action"]
    action = tuned.actions[0]
    failed = Past(
        id=action.id, rule="spike", kind=action.kind, step=action.step, suspect=action.suspect, outcome="failed"
    )
    tuned.run.journal.append(failed)
    tuned.steps(1)
    assert len(tuned.actions) == 2, "a failed action may be tried again"
    assert tuned.actions[1].checkpoint == action.checkpoint


def test_a_rejected_proposal_is_not_made_again_for_the_same_place() -> None:
    rules = read_rules("[rules.spike]\nask = true")
    tuned = ill(rules=rules, obeys=False).steps(10)
    (action,) = tuned.actions
    assert action.ask
    tuned.run.journal.append(
        Past(id=action.id, rule="spike", kind="recover", step=action.step, suspect=action.suspect, outcome="rejected")
    )
    tuned.steps(120)
    assert len(tuned.actions) == 1
    assert tuned.brakes("spike") == ["waits for a person"]


def test_a_proposal_that_nobody_answers_is_made_again_and_not_taken_further() -> None:
    rules = read_rules("[rules.spike]\nask = true\n[brakes]\nanswer_steps = 60")
    tuned = ill(rules=rules, armed=("spike",), obeys=False).steps(120)
    first, second = tuned.actions
    assert (second.kind, second.checkpoint, second.changes) == (first.kind, first.checkpoint, {})


def test_an_open_proposal_does_not_hold_a_rule_that_may_act() -> None:
    rules = read_rules("[rules.spike]\nask = true")
    run = SimulatedRun(lambda run: 0.5 if run.step == 300 else math.nan if run.step == 370 else 0.0)
    tuned = Tuned(run, rules, ("spike", "nonfinite"), obeys=False).steps(372)
    assert [action.rule for action in tuned.actions] == ["spike", "nonfinite"]


def test_the_last_action_of_the_budget_is_a_pause() -> None:
    tuned = ill(rules=settings(budget_per_run=1)).steps(30)
    assert tuned.kinds == ["pause"]
    assert "it is the last action of the budget" in tuned.actions[0].reason
    assert tuned.verdicts[-1].budget_left == 0


def test_a_used_budget_holds_every_action() -> None:
    run = SimulatedRun(bad_data(300, 330))
    tuned = Tuned(run, settings(budget_per_run=1, incident_steps=1)).steps(310)
    run.paused = False
    tuned.steps(100)
    run.fault = bad_data(run.index + 50, 10_000)
    tuned.steps(80)
    assert len(tuned.actions) == 1
    assert tuned.brakes("spike")[-1] == "budget"


def test_a_bound_that_contradicts_the_schema_disarms_everything() -> None:
    tuned = Tuned(SimulatedRun(bad_data(300, 400), maximum={"lr": 1.0}), read_rules("[bounds.lr]\nmin = 2.0"))
    tuned.steps(310)
    assert tuned.actions == []
    (spike,) = [rule for rule in tuned.verdicts[-1].rules if rule.rule == "spike"]
    assert texts.brake(spike.brakes[0]) == "min 2 is above 1, the most that the schema allows for lr: lower it"


def test_a_checkpoint_too_far_back_becomes_a_pause() -> None:
    tuned = ill(rules=settings(max_rewind_steps=30)).steps(30)
    assert tuned.kinds == ["pause"]
    assert "steps back (limit 30)" in tuned.actions[0].reason
