"""A report of fast steps covers so many of them that a fault begins and ends within one sample."""

from __future__ import annotations

import random

from instep.tuner.decide import decide
from instep.tuner.sample import LOSS, Point, Sample, Window
from instep.tuner.state import initial

BAD = range(210, 226)


def point(step: int) -> Point:
    loss = random.Random(step).gauss(9.0 if step in BAD else 2.5, 0.05)
    return Point(step, step, {LOSS: Window(1, loss, loss, loss, loss)})


def test_a_spike_that_was_over_within_one_sample_is_reported_once() -> None:
    state, _ = decide(initial(), Sample(points=tuple(map(point, range(200)))))
    state, verdict = decide(state, Sample(points=tuple(map(point, range(200, 300)))))
    fired = {rule.rule: rule.detection for rule in verdict.rules if rule.status == "fired"}
    assert fired.keys() == {"spike"}
    assert fired["spike"] is not None
    assert fired["spike"].suspect == BAD.start
    _, verdict = decide(state, Sample(points=tuple(map(point, range(300, 400)))))
    assert [rule.rule for rule in verdict.rules if rule.status == "fired"] == []
