"""Recordings: samples as JSON lines, and what a replay of them decides."""

from __future__ import annotations

import json
import math

import pytest
from simulated_run import SimulatedRun, Tuned, bad_data, point

from instep.errors import SettingsError
from instep.tuner.record import decode_sample, encode_header, encode_sample, read_samples, replayed
from instep.tuner.sample import Checkpoint, Event, Parameter, Past, Sample


def test_a_sample_survives_its_line() -> None:
    sample = Sample(
        points=(point(3, 7, loss=2.5, aux=math.nan),),
        view=2,
        world_size=8,
        reporting=7,
        age_s=0.5,
        step_time_s=0.1,
        parameters={"lr": Parameter(1e-3, 0.0, 1.0), "name": Parameter("x"), "skip": Parameter(0, data_offset=True)},
        checkpoints=(Checkpoint("50-7", 50, finite=True),),
        events=(Event(kind="plan", step=5, plan=1, changes={"lr": (0.1, 1)}, author="anna"),),
        journal=(Past(id="3-1", rule="spike", kind="recover", step=3, suspect=2, changes={"lr": (True, None)}),),
        evaluating=True,
    )
    line = encode_sample(sample)
    assert "\n" not in line
    assert decode_sample(line) == sample
    assert json.loads(line)["view"] == 2


def test_a_sample_that_holds_only_defaults_is_short() -> None:
    assert encode_sample(Sample()) == "{}"


def test_a_replay_decides_as_the_tuner_did() -> None:
    run = SimulatedRun(bad_data(300, 340))
    lines = [encode_header("gpt-a")]
    tuned = Tuned(run, obeys=False)
    for _ in range(400):
        sample = run.sample()
        lines.append(encode_sample(sample))
        tuned.see(sample)
    assert tuned.actions
    assert list(replayed(read_samples(lines))) == tuned.verdicts


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "the recording is empty"),
        (["  ", ""], "the recording is empty"),
        (["{}"], "recording, line 1: not the header of a recording"),
        (["x"], "recording, line 1: not the header of a recording"),
        (['{"instep_tuner_samples": 9}'], "recording, line 1: its format is 9, this program reads 1"),
        ([encode_header("a"), "{}", "{"], "recording, line 3: not a sample: "),
        ([encode_header("a"), "[]"], "recording, line 2: not a sample: "),
        (
            [encode_header("a"), "", '{"view": "x"}'],
            "recording, line 3: not a sample: view: input should be a valid integer",
        ),
        (
            [encode_header("a"), '{"points": [{"first_step": 1}]}'],
            "recording, line 2: not a sample: points.0.last_step",
        ),
    ],
)
def test_a_bad_line_is_named(lines: list[str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        list(read_samples(lines))
    assert str(caught.value).startswith(sentence)


def test_fields_of_a_newer_tuner_are_ignored() -> None:
    assert decode_sample('{"view": 3, "novelty": [1, 2]}') == Sample(view=3)
