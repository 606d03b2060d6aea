"""What a run was trained with, according to the starts of its views and its plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from instep.errors import ConfigError
from instep.protocol.records import Decision, FirstStep, Manifest, Origin, Plan, Snapshot, StartChange, StartOfView
from instep.protocol.timeline import Timeline
from instep.scalar import Scalar
from instep.schedule import Schedule
from unit import parts

COMMIT, ABORT = Decision(commit=True), Decision(commit=False, reason="late")


class Story:
    """A run's past, built event by event."""

    def __init__(self) -> None:
        self.starts: dict[int, StartOfView] = {}
        self.first_steps: dict[int, FirstStep] = {}
        self.plans: dict[int, Plan] = {}
        self.decisions: dict[int, Decision] = {}
        self.manifests: dict[str, Manifest] = {}
        self.view = 0

    def start(
        self,
        first_step: int | None = 0,
        *,
        checkpoint: Manifest | None = None,
        replays: str | None = None,
        changes: tuple[StartChange, ...] = (),
        **values: Any,
    ) -> None:
        self.view += 1
        self.starts[self.view] = StartOfView(
            view=self.view,
            values={"lr": 0.1, "clip": 1.0, **values},
            plan=len(self.plans),
            checkpoint=checkpoint.id if checkpoint else None,
            replays=replays,
            changes=changes,
        )
        if first_step is not None:
            self.first_steps[self.view] = FirstStep(step=first_step)
        if checkpoint is not None:
            self.manifests[checkpoint.id] = checkpoint

    def change(self, gate: int, decision: Decision | None = COMMIT, **values: Scalar) -> None:
        self._add(parts.plan(len(self.plans) + 1, gate=gate, view=self.view, **values), decision)

    def restore(self, gate: int, to: Manifest) -> None:
        plan = parts.plan(len(self.plans) + 1, gate=gate, view=self.view)
        news = {"kind": "restore", "name": to.id, "checkpoint": to, "values": {}, "previous": {}}
        self._add(replace(plan, **news), COMMIT)

    def pause(self, gate: int) -> None:
        plan = parts.plan(len(self.plans) + 1, gate=gate, view=self.view)
        self._add(replace(plan, kind="pause", values={}, previous={}), COMMIT)

    def _add(self, plan: Plan, decision: Decision | None) -> None:
        self.plans[plan.number] = replace(plan, author=f"author {plan.number}")
        if decision is not None:
            self.decisions[plan.number] = decision

    def timeline(self) -> Timeline:
        return Timeline(
            starts=self.starts,
            first_steps=self.first_steps,
            plans=self.plans,
            decisions=self.decisions,
            manifests=self.manifests,
        )

    def schedule(self) -> Schedule:
        return self.timeline().schedule("gpt-a")

    def told(self) -> tuple[dict[str, Scalar], list[tuple[int, dict[str, Scalar]]]]:
        schedule = self.schedule()
        return dict(schedule.values), [(change.step, dict(change.values)) for change in schedule.changes]


BEGUN: dict[str, Scalar] = {"lr": 0.1, "clip": 1.0}


def test_a_run_without_restarts_is_its_start_and_its_committed_changes() -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.change(15, ABORT, lr=0.9)
    story.pause(17)
    story.change(20, lr=0.25, clip=2.0)
    story.change(30, None, lr=0.7)
    assert story.told() == (BEGUN, [(10, {"lr": 0.5}), (20, {"lr": 0.25, "clip": 2.0})])
    assert story.schedule().changes[0].author == "author 1"


def test_changes_after_the_checkpoint_that_a_restart_resumed_from_are_left_out() -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.change(30, lr=0.25)
    story.start(21, checkpoint=parts.manifest(20, plan=1), lr=0.25)
    assert story.told() == (BEGUN, [(10, {"lr": 0.5}), (21, {"lr": 0.25})])
    assert story.schedule().changes[1].reason == "resumed from checkpoint 20-7"


def test_a_restart_from_the_beginning_drops_everything_before() -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.start(0, lr=0.5)
    assert story.told() == ({**BEGUN, "lr": 0.5}, [])


def test_a_view_that_ran_no_step_is_ignored() -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.start(None, lr=0.9)
    assert story.told() == (BEGUN, [(10, {"lr": 0.5})])


def test_a_start_without_a_reported_first_step_resumes_from_its_checkpoint() -> None:
    story = Story()
    story.start()
    story.start(None, checkpoint=parts.manifest(20), lr=0.5)
    story.change(40, lr=0.25)
    assert story.told() == (BEGUN, [(21, {"lr": 0.5}), (40, {"lr": 0.25})])


def test_a_restored_run_continues_with_the_agreed_values() -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.change(30, lr=0.25)
    story.restore(40, parts.manifest(20, plan=1))
    story.change(25, clip=3.0)
    assert story.told() == (BEGUN, [(10, {"lr": 0.5}), (21, {"lr": 0.25}), (25, {"clip": 3.0})])


def test_restoring_an_abandoned_checkpoint_restores_the_values_that_led_to_it() -> None:
    """Steps 21 to 30 first ran with 0.5 and then, after a restore of step 10, with 0.9. The first pass saved step
    30."""
    story = Story()
    story.start()
    story.change(20, lr=0.5)
    story.restore(40, parts.manifest(10, plan=0))
    story.change(15, lr=0.9)
    story.restore(50, parts.manifest(30, plan=1))
    assert story.told() == (BEGUN, [(20, {"lr": 0.5}), (31, {"lr": 0.9})])


def test_a_restart_has_the_values_that_led_to_its_checkpoint() -> None:
    story = Story()
    story.start()
    story.change(20, lr=0.5)
    story.start(11, checkpoint=parts.manifest(10), lr=0.9)
    story.start(31, checkpoint=parts.manifest(30, view=1, plan=1), lr=0.25)
    assert story.told() == (BEGUN, [(20, {"lr": 0.5}), (31, {"lr": 0.25})])


def test_the_checkpoint_that_ranks_agreed_on_wins_over_the_newest() -> None:
    story = Story()
    story.start()
    story.change(20, lr=0.5)
    story.start(11, checkpoint=parts.manifest(10), lr=0.9)
    story.start(31, checkpoint=parts.manifest(35, 8, view=2, plan=1), lr=0.25)
    story.first_steps[3] = FirstStep(step=31, origin=Origin(id="30-7", step=30, view=1, plan=1))
    assert story.told() == (BEGUN, [(20, {"lr": 0.5}), (31, {"lr": 0.25})])


def test_a_change_to_a_run_paused_from_its_start_applies_from_its_first_step() -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.start(21, checkpoint=parts.manifest(20, plan=1), lr=0.5)
    story.change(0, clip=3.0)
    assert story.told() == (BEGUN, [(10, {"lr": 0.5}), (21, {"clip": 3.0})])


def test_a_run_without_steps_is_its_start() -> None:
    story = Story()
    story.start(None)
    assert story.told() == (BEGUN, [])


def test_a_view_known_only_from_its_state_is_a_start() -> None:
    view = parts.view({"a": {0: 10}}).model_copy(update={"start": Snapshot(values=BEGUN)})
    assert Timeline(view=view).segments()[0].start.values == BEGUN


@pytest.mark.parametrize("forgotten", [1, 2])
def test_deleted_plans_make_the_schedule_unknown(forgotten: int) -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.change(20, lr=0.25)
    story.change(30, lr=0.7)
    del story.plans[forgotten]
    with pytest.raises(ConfigError, match="values of run gpt-a from step 0 on are not known: some of its plans"):
        story.schedule()
    story.start(0, lr=0.7)
    story.plans[forgotten] = parts.plan(forgotten)
    del story.plans[forgotten]
    assert story.told() == ({**BEGUN, "lr": 0.7}, [])


def test_a_deleted_start_makes_the_schedule_unknown() -> None:
    story = Story()
    story.start()
    story.start(21, checkpoint=parts.manifest(20))
    del story.starts[1]
    with pytest.raises(ConfigError, match="from step 0 on are not known"):
        story.schedule()


def test_replayed_steps_refer_to_their_schedule() -> None:
    story = Story()
    story.start()
    story.start(21, replays="abc")
    with pytest.raises(ConfigError, match="from step 21 on are not known: it replayed a schedule"):
        story.schedule()


def test_a_run_that_never_started_has_no_schedule() -> None:
    with pytest.raises(ConfigError, match="run gpt-a has not started yet"):
        Timeline().schedule("gpt-a")


def test_values_before_and_after_a_plan_are_those_of_its_segment() -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.change(20, clip=2.0)
    story.start(21, lr=0.9, clip=2.0)
    story.change(30, lr=0.25)
    timeline = story.timeline()
    assert timeline.values_before(1) == BEGUN
    assert timeline.values_after(1) == timeline.values_before(2) == {"lr": 0.5, "clip": 1.0}
    assert timeline.values_before(3) == {"lr": 0.9, "clip": 2.0}
    assert timeline.changed_since((2, 0)) == ("clip", "lr")
    assert timeline.changed_since((3, 0)) == ("lr",)
    assert timeline.newest_change() == (3, 0)


def test_a_name_that_a_new_script_adds_is_no_change() -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.start(11, lr=0.5, decay=0.1)
    assert story.timeline().changed_since((1, 0)) == ("lr",)


def changed_at_start(*names: str, revision: int = 50, author: str | None = "ann", **previous: Scalar) -> StartChange:
    return StartChange(revision=revision, names=names, previous=previous, author=author, reason="slower")


def test_changes_between_two_starts_are_in_the_timeline() -> None:
    story = Story()
    story.start()
    story.change(10, lr=0.5)
    story.start(15, lr=0.25, clip=2.0, changes=(changed_at_start("lr", lr=0.5), changed_at_start("clip", clip=1.0)))
    timeline = story.timeline()
    assert timeline.newest_change() == (1, 2)
    assert timeline.start(2).before == {"lr": 0.5, "clip": 1.0}
    assert timeline.changed_since((1, 2)) == ("lr", "clip")
    assert set(timeline.changed_since((1, 0))) == {"lr", "clip"}
    story.change(20, lr=0.125)
    assert story.timeline().newest_change() == (2, 0)
    assert story.timeline().changed_since((2, 0)) == ("lr",)
    assert set(story.timeline().changed_since((1, 2))) == {"lr", "clip"}
    with pytest.raises(ConfigError, match="no start of view 9 is kept"):
        timeline.start(9)


def test_a_schedule_names_the_authors_of_changes_between_two_starts() -> None:
    story = Story()
    story.start()
    story.start(15, lr=0.25, changes=(changed_at_start("lr", lr=0.1),))
    change = story.timeline().schedule("gpt-a").changes[0]
    assert (change.step, change.values, change.author, change.reason) == (
        15,
        {"lr": 0.25},
        "ann",
        "slower (start of view 2)",
    )
