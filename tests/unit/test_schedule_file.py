"""A schedule as a file: a written file can be read, and each mistake is explained in one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from instep.errors import SettingsError
from instep.schedule import MAX_STEP, Schedule, ScheduledChange

SCHEDULE = Schedule(
    "gpt-a",
    {"lr": 0.1, "name": "adam", "warm": None, "fast": True},
    (ScheduledChange(10, {"lr": 1e-4}, "ann@host", "loss spike"), ScheduledChange(20, {"lr": 0.5, "fast": False})),
)


def document(**more: Any) -> str:
    return json.dumps({**SCHEDULE.to_json(), **more})


def test_a_written_schedule_can_be_read_back() -> None:
    assert Schedule.decode(SCHEDULE.encode()) == SCHEDULE
    assert Schedule.decode(SCHEDULE.encode()).digest == SCHEDULE.digest


def test_the_digest_covers_what_the_run_trains_with() -> None:
    signed = [{"step": 10, "values": {"lr": 1e-4}, "author": "bob"}, {"step": 20, "values": {"fast": False, "lr": 0.5}}]
    assert Schedule.decode(document(changes=signed, run="other")).digest == SCHEDULE.digest
    for changes in ([], [{"step": 11, "values": {"lr": 1e-4}}, *signed[1:]]):
        assert Schedule.decode(document(changes=changes)).digest != SCHEDULE.digest
    assert Schedule.decode(document(values={"lr": 0.2})).digest != SCHEDULE.digest


def test_names_are_those_of_the_start_and_of_the_changes() -> None:
    assert Schedule("a", {"b": 1}, (ScheduledChange(1, {"c": 2, "b": 3}),)).names == ("b", "c")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[1, 2]", "not a schedule of Instep"),
        ("{}", "not a schedule of Instep"),
        ("[" * 100_000, "not JSON"),
        ('{"instep_schedule": 1, "values": {"lr": NaN}, "changes": []}', "NaN"),
        ('{"instep_schedule": 1, "values": {"lr": 1, "lr": 2}, "changes": []}', "'lr' occurs twice"),
        (document(instep_schedule=2), "its format is 2, and this version of Instep reads 1"),
        (document(instep_schedule=True), "its format is true"),
        (document(changes={}), "its changes are not a list"),
        (document(changes=[7]), "change 1 is 7"),
        (document(changes=[{"values": {"lr": 1}}]), "the step of change 1 is null"),
        (document(changes=[{"step": True, "values": {"lr": 1}}]), "the step of change 1 is true"),
        (document(changes=[{"step": -1, "values": {"lr": 1}}]), "at least 0"),
        (document(changes=[{"step": MAX_STEP + 1, "values": {"lr": 1}}]), "at least 0"),
        (document(changes=[{"step": 1.0, "values": {"lr": 1}}]), "the step of change 1 is 1.0"),
        (document(changes=[{"step": 1, "values": {}}]), "changes no value"),
        (document(changes=[{"step": 1}]), "the values of change 1 (step 1) are null"),
        (document(changes=[{"step": 9, "values": {"lr": 1}}] * 2), "for step 9 and comes after one for step 9"),
        (document(values=[]), "the values of the start are []"),
        (document(values={"lr": [1]}), "lr of the start is [1]: a hyperparameter is one number"),
        (document(values={"l r": 1}), "hyperparameter name 'l r'"),
        (document(values={"lr": "\ud800"}), "UTF-8"),
        (document(values={"lr": "x" * 70_000}), "65536 is the most"),
        ('{"instep_schedule": 1, "values": {"lr": 1e999}, "changes": []}', "beyond what a float can hold"),
        (f'{{"instep_schedule": 1, "values": {{"lr": {"9" * 5000}}}, "changes": []}}', "not JSON"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Schedule.decode(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
