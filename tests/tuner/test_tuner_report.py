"""What the benchmark of the tuner says of its trials."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

pytest.importorskip("torch")

from benchmarks.tuner.picture import svg  # after the check for torch
from benchmarks.tuner.report import Results, text
from benchmarks.tuner.run import main
from benchmarks.tuner.simulation import Done
from benchmarks.tuner.trials import FaultTrial, HealthyTrial

pytestmark = pytest.mark.torch

DONE = Done("306-1", "recover", "spike", 306, 300, 311, "249", 157)
GOOD = FaultTrial(
    fault="targets",
    seed=7,
    first=300,
    twin=1.8,
    treated=1.82,
    untreated=1.9,
    paused=False,
    extra_steps=61,
    actions=(DONE,),
    firings=(),
    delays={"x10": None, "tuner": 6},
)
HEALTHY = HealthyTrial(kind="high_lr", seed=8, steps=600, actions=(), firings=(), alarms={"x10": 3})


def results(*faults: FaultTrial, healthy: tuple[HealthyTrial, ...] = (HEALTHY,)) -> Results:
    return Results(1, 0.25, 10.0, faults, healthy)


def test_a_good_result_falls_short_of_nothing() -> None:
    found = results(GOOD, GOOD)
    assert found.shortfalls == ()
    said = text(found, {"targets": "40 bad batches"})
    assert "2/2" in said
    assert "40 bad batches" in said
    assert "all that was promised was reached" in said
    assert "50.0" in said, "three alarms in 600 steps are 50 in 10,000"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"treated": 1.86}, "0.0% of the faulty runs recovered"),
        ({"treated": math.inf}, "0.0% of the faulty runs recovered"),
        ({"paused": True}, "0.0% of the faulty runs recovered"),
        ({"actions": (DONE, DONE)}, "targets: more than one action at the median"),
    ],
)
def test_each_shortfall_is_named(change: dict[str, object], sentence: str) -> None:
    assert any(sentence in item for item in results(replace(GOOD, **change)).shortfalls)


def test_an_action_on_a_healthy_run_is_a_shortfall_and_its_seed_is_named() -> None:
    found = results(GOOD, healthy=(HEALTHY, replace(HEALTHY, seed=4711, actions=(DONE,))))
    assert found.shortfalls == ("1 of 2 healthy runs were changed: none may be",)
    assert "4711" in text(found, {})


def test_a_run_that_did_not_recover_is_listed_with_its_seed_and_actions() -> None:
    said = text(results(replace(GOOD, treated=math.inf)), {})
    assert "targets with seed 7, fault at 300: broken; recover by spike at 311, to 249, skipping 157" in said


def test_the_document_is_json_without_infinities() -> None:
    document = json.loads(json.dumps(results(replace(GOOD, untreated=math.inf)).document(), allow_nan=False))
    assert document["faults"][0]["untreated"] is None
    assert document["faults"][0]["actions"][0]["checkpoint"] == "249"


def test_an_unknown_fault_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--faults", "gremlins"])
    assert "unknown: gremlins" in capsys.readouterr().err


def test_the_picture_is_valid_svg_and_leaves_out_what_is_not_finite() -> None:
    curves = {
        "without the fault": [(2.0, 2.5), (6.0, 2.4)],
        "without a tuner": [(2.0, 2.5), (6.0, math.nan)],
        "with the tuner": [(2.0, 2.5), (6.0, 9.0)],
    }
    drawn = svg("one gradient x1e4", 3, curves, dict.fromkeys(curves, 1.8) | {"without a tuner": math.inf}, [DONE])
    ElementTree.fromstring(drawn)
    assert "nan" not in drawn
    assert "recover: back to 249, 157 batches passed over" in drawn
    assert "without a tuner: broken" in drawn
