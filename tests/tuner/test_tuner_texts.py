"""The sentences of the tuner, as people read them."""

from __future__ import annotations

from typing import get_args

import pytest

from instep.tuner import texts
from instep.tuner.rules import RULE_KINDS
from instep.tuner.verdict import Action, Brake, BrakeName, Detection, Judged, Progress, RuleVerdict, Verdict

RECOVER = Action(
    id="310-1",
    kind="recover",
    rule="spike",
    step=310,
    suspect=300,
    reason="loss rose",
    changes={"lr": (0.3, 0.003), "clip": (2, 1)},
    takes_back=(7,),
    checkpoint="249-17",
    checkpoint_step=249,
    offset="skip",
    raise_offset=161,
    skipped_to=411,
)


def test_an_action_says_all_that_it_does() -> None:
    assert texts.action(RECOVER) == (
        "go back to checkpoint 249-17, set lr 0.3 → 0.003, clip 2 → 1, pass over 161 batches (skip)"
    )


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("take_back", "take back lr 0.3 → 0.003"),
        ("cut_lr", "lower lr 0.3 → 0.003"),
        ("revert", "set back lr 0.3 → 0.003"),
        ("pause", "pause for a person"),
    ],
)
def test_each_kind_of_action_has_its_verb(kind: str, sentence: str) -> None:
    changes = {"lr": (0.3, 0.003)} if kind != "pause" else {}
    action = Action(id="3-1", kind=kind, rule="x", step=3, suspect=3, reason="", changes=changes)  # type: ignore[arg-type]
    assert texts.action(action) == sentence


def test_a_verdict_is_one_line_for_each_thing_that_happens() -> None:
    found = Detection(metric="loss", suspect=300, since=303, last=303, figure=11.731, limit=6.0, value=4.3, normal=2.49)
    fired = RuleVerdict(
        rule="spike",
        kind="spike",
        status="fired",
        armed=True,
        detection=found,
        wants=RECOVER,
        brakes=(Brake("cool-down", 12, "50 steps after an action"), Brake("stale", 12.5, 10.0)),
    )
    watching = RuleVerdict(
        rule="hot", kind="threshold", status="watching", armed=False, progress=Progress(have=3, need=10, lacks="steps")
    )
    quiet = RuleVerdict(rule="grad", kind="grad", status="quiet", armed=True)
    judged = Judged(id="20-1", judgement="verified", before=2.5, peak=9.0312, after=2.48)
    lines = texts.verdict(Verdict(step=310, rules=(fired, watching, quiet), action=RECOVER, judged=(judged,)))
    assert lines == (
        "spike: fired: loss rose from 2.49 to 4.3 (z 11.73, limit 6), suspect since step 300; "
        "wants: go back to checkpoint 249-17, set lr 0.3 → 0.003, clip 2 → 1, pass over 161 batches (skip); "
        "held back: 12 steps since the last action; it waits for 50 steps; "
        "held back: the oldest report is 12.5 s old (limit 10 s)",
        "hot (shadow): watching: for 3 of 10 steps",
        "step 310: spike acts (310-1): loss rose",
        "action 20-1: verified (loss before 2.5, peak 9.031, after 2.48)",
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00031, "0.00031"),
        (12456.7, "12457"),
        (2.5, "2.5"),
        (3, "3"),
        (None, "a value that is not finite"),
        (float("nan"), "nan"),
        (float("inf"), "a huge number"),
        (10**400, "a huge number"),
        ("as it is", "as it is"),
    ],
)
def test_numbers_have_four_digits(value: float | str | None, text: str) -> None:
    assert texts.number(value) == text


@pytest.mark.parametrize("kind", RULE_KINDS)
def test_every_kind_of_rule_has_a_sentence(kind: str) -> None:
    found = Detection(metric="m", suspect=3, since=4, last=5, figure=1.5, limit=1.0, value=2.0, normal=1.0, rank=3)
    sentence = texts.detection(kind, found)
    assert "{" not in sentence
    assert not sentence.endswith(".")


def test_every_brake_has_a_sentence() -> None:
    for name in get_args(BrakeName):
        assert "{" not in texts.brake(Brake(name, 1.0, "10 steps after a restore"))
