"""A worker that replays a schedule: what it reads, what it refuses, and its values at each step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, model_validator

import instep
from instep.errors import ConfigError, SettingsError
from instep.names import REPLAY_KEY
from instep.protocol.desired import next_change, start_values
from instep.protocol.records import Directive, Origin, Snapshot
from instep.protocol.schema import Schema
from instep.schedule import Schedule, ScheduledChange
from instep.wire.messages import Began, Decide, PlanArmed, PlanRefused, ProposePlan
from instep.worker.agreement import Agreement
from instep.worker.gate import Apply
from instep.worker.hyper import Codec
from instep.worker.replay import REFUSAL, Replay
from unit.parts import desired, manifest, plan


class Hyper(instep.Hyperparameters):
    lr: float = Field(0.1, gt=0, le=1)
    clip: float = 1.0
    dropout: float = instep.fixed(0.1)

    @model_validator(mode="after")
    def _clip_above_lr(self) -> Hyper:
        if self.clip <= self.lr:
            raise ValueError("clip must be above lr")
        return self


BEGUN: dict[str, Any] = {"lr": 0.2, "clip": 2.0, "dropout": 0.1}
START = Snapshot(values={"lr": 0.9, "clip": 9.0, "dropout": 0.9}, plan=3)


def schedule(*changes: tuple[int, dict[str, Any]], values: dict[str, Any] = BEGUN) -> Schedule:
    return Schedule("gpt-a", values, tuple(ScheduledChange(step, news) for step, news in changes))


def replay(*changes: tuple[int, dict[str, Any]], values: dict[str, Any] = BEGUN, model: Any = Hyper) -> Replay:
    return Replay(schedule(*changes, values=values), Codec(model))


def agreement(*changes: tuple[int, dict[str, Any]]) -> Agreement[Hyper]:
    """Welcomed by a view with other values."""
    made: Agreement[Hyper] = Agreement(Codec(Hyper), replay(*changes))
    made.start(START, 4)
    return made


# -- the file ------------------------------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "schedule.json"
    file.write_text(schedule((10, {"lr": 0.5})).encode())
    for path in (file, str(file)):
        assert Replay.read(path, Codec(Hyper)).schedule == schedule((10, {"lr": 0.5}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "not UTF-8"),
        (b"lr: 0.1", "not JSON"),
        (schedule((10, {"lr": 0.5}), (10, {"lr": 0.6})).encode().encode(), "the steps must increase"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "schedule.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=said) as caught:
        Replay.read(file, Codec(Hyper))
    assert "schedule.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [7, "a\0b", "/", ""])
def test_a_value_that_is_no_file_path_is_refused(path: Any) -> None:
    with pytest.raises(SettingsError, match=r"must be the path|cannot be read"):
        Replay.read(path, Codec(Hyper))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: replay(values={**BEGUN, "decay": 1}), "decay: the script does not declare it"),
        (lambda: replay((10, {"decay": 1})), "decay: the script does not declare it"),
        (lambda: replay(values={"lr": 0.1, "clip": 1.0}), "dropout: it has no start value"),
        (lambda: replay((10, {"lr": 7.0})), "at step 10 .lr: input should be less than or equal to 1"),
        (lambda: replay((10, {"lr": "fast"})), "at step 10 .lr: input should be a valid number"),
        (lambda: replay(values={**BEGUN, "lr": 0}), "to start with .lr: input should be greater than 0"),
        (lambda: replay((10, {"clip": 0.5}), (20, {"lr": 0.5})), "at step 20 .*clip must be above lr"),
        (lambda: replay(values={str(n): "x" * 60_000 for n in range(5)}, model=None), "262144 is the most"),
    ],
)
def test_values_that_the_script_does_not_accept_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        given()
    assert "\n" not in str(caught.value)


def test_values_are_validated_together_as_they_will_apply() -> None:
    """At step 20 the lr would be above the clip of the start, but not above that of step 10."""
    assert replay((10, {"clip": 5.0}), (20, {"lr": 1.0})).values_at(20) == {"lr": 1.0, "clip": 5.0, "dropout": 0.1}


# -- values by step ------------------------------------------------------------------------------------------------


def test_values_hold_from_their_step_on_forwards_and_backwards() -> None:
    plan = replay((10, {"lr": 0.5}), (20, {"lr": 0.6, "clip": 3.0}))
    seen = [(step, plan.values_at(step)["lr"], plan.next_step) for step in (0, 9, 10, 19, 25, 12, 3, 20)]
    never = plan.values_at(99) and plan.next_step
    assert seen == [
        (0, 0.2, 10),
        (9, 0.2, 10),
        (10, 0.5, 20),
        (19, 0.5, 20),
        (25, 0.6, never),
        (12, 0.5, 20),
        (3, 0.2, 10),
        (20, 0.6, never),
    ]


def test_a_worker_takes_the_values_of_the_schedule_at_its_steps() -> None:
    worker, heard = agreement((10, {"lr": 0.5}), (20, {"lr": 0.6})), []
    worker.on_change(lambda old, new: heard.append((old.lr, new.lr)))
    assert worker.config.lr == 0.2
    assert worker.begin(0) == [Began(4, 0)]
    assert worker.next_gate == 10
    worker.begin(9)
    assert worker.config.lr == 0.2
    worker.begin(10)
    assert (worker.config.lr, worker.next_gate, heard) == (0.5, 20, [(0.2, 0.5)])
    worker.begin(30)
    assert heard == [(0.2, 0.5), (0.5, 0.6)]
    assert worker.next_gate > 2**60


def test_a_worker_that_starts_in_the_middle_takes_the_values_of_that_step() -> None:
    worker = agreement((10, {"lr": 0.5, "dropout": 0.4}), (20, {"lr": 0.6}))
    worker.begin(15)
    assert (worker.config.lr, worker.config.dropout, worker.next_gate) == (0.5, 0.4, 20)


def test_a_fixed_value_that_changes_during_training_is_an_error_with_the_fix() -> None:
    worker = agreement((10, {"dropout": 0.4}))
    worker.begin(0)
    with pytest.raises(ConfigError, match=r"changes dropout before step 10.*save a checkpoint of step 9"):
        worker.begin(10)


def test_a_live_change_is_refused_by_the_worker_too() -> None:
    worker = agreement()
    worker.begin(0)
    change = plan(4, lr=0.5)
    assert worker.on_plan(ProposePlan(change), 1) == [PlanRefused(4, change.digest, {"lr": REFUSAL})]


def test_a_command_is_not_refused() -> None:
    worker = agreement()
    worker.begin(0)
    pause = replace(plan(4), kind="pause", values={}, previous={}, directive=Directive(paused_at=10))
    assert worker.on_plan(ProposePlan(pause), 1) == [PlanArmed(4, pause.digest)]


# -- what the run says of it ---------------------------------------------------------------------------------------


def test_the_schema_says_what_is_replayed_and_begins_with_its_values() -> None:
    plan = replay((10, {"lr": 0.5}))
    schema = Schema(plan.document)
    assert schema.replays == plan.schedule.digest
    assert schema.defaults() == BEGUN
    assert schema.digest != Schema(Codec(Hyper).document).digest
    assert Schema(Codec(Hyper).document).replays is None
    assert Schema(replay((11, {"lr": 0.5})).document).digest != schema.digest


def test_without_a_schema_the_names_are_those_of_the_schedule() -> None:
    plan = replay((10, {"decay": 0.5}), values={"lr": 0.1}, model=None)
    schema = Schema(plan.document)
    assert (schema.names, schema.defaults()) == (("lr", "decay"), {"lr": 0.1})
    assert plan.values_at(10) == {"lr": 0.1, "decay": 0.5}


def test_desired_values_are_ignored_at_the_start_and_later() -> None:
    schema = Schema(replay().document)
    shown = desired(lr=("0.5", 7))
    assert start_values(shown, {"lr": 0.7}, schema, {}).values == BEGUN
    wanted = next_change(shown, BEGUN, schema, {})
    assert wanted is not None
    assert "replays a schedule" in wanted.rejections[0].reason


def test_a_document_whose_digest_is_no_text_replays_nothing() -> None:
    assert Schema({REPLAY_KEY: 7}).replays is None


def test_a_resuming_worker_has_the_values_of_the_next_step_before_it_begins() -> None:
    worker = agreement((10, {"lr": 0.5, "dropout": 0.4}), (20, {"lr": 0.6}))
    worker.continue_from("14-7", 14, view=2, plan=1)
    assert worker.config.lr == 0.5
    assert worker.begin(15) == [Began(4, 15, Origin("14-7", 14, view=2, plan=1))]
    assert worker.next_gate == 20


def test_a_restored_run_replays_from_its_checkpoint() -> None:
    worker = agreement((10, {"lr": 0.5}), (20, {"lr": 0.6}))
    worker.handlers.on_restore(lambda manifest: None)
    worker.begin(0)
    worker.begin(22)
    saved = manifest(14)
    back = replace(plan(4, gate=25), kind="restore", name="14-7", checkpoint=saved, values={}, previous={})
    worker.on_plan(ProposePlan(back), 23)
    worker.on_decision(Decide(4, True), 24)
    due = worker.due(25)
    assert isinstance(due, Apply)
    assert worker.apply(due, 25) == 15
    assert (worker.config.lr, worker.next_gate) == (0.5, 20)
