"""The benchmark of the tuner: its training, its faults, its reports, and the detectors that it compares with."""

from __future__ import annotations

import math
import random

import pytest

torch = pytest.importorskip("torch")

from benchmarks.tuner.checkpoints import Checkpoints  # noqa: E402
from benchmarks.tuner.detectors import DETECTORS, Detector  # noqa: E402  # after the check for torch
from benchmarks.tuner.faults import FAULTS, STANDARD, random_targets, scaled  # noqa: E402
from benchmarks.tuner.model import SIZE, Measured, Model, Settings  # noqa: E402
from benchmarks.tuner.simulation import Pace, Simulation, points_of  # noqa: E402
from benchmarks.tuner.text import SYMBOLS, draw  # noqa: E402
from benchmarks.tuner.trials import NEAR, fork_point  # noqa: E402
from benchmarks.tuner.world import Moment, Record, World  # noqa: E402

pytestmark = pytest.mark.torch
ALARMS = {detector.name: detector for detector in DETECTORS}


def records(*losses: float, first: int = 0) -> list[Record]:
    return [Record(first + number, Measured((loss, loss + 1), 0.5)) for number, loss in enumerate(losses)]


def advanced(world: World, steps: int) -> list[Measured]:
    return [world.advance().measured for _ in range(steps)]


def test_the_model_has_the_published_size() -> None:
    assert SIZE == 70_080


def test_a_restore_repeats_the_steps_after_the_checkpoint_bit_for_bit() -> None:
    world = World(STANDARD, 1)
    advanced(world, 50)
    later = advanced(world, 3)
    world.restore("49-1", author="ann")
    assert world.step == 50
    assert advanced(world, 3) == later


def test_a_restore_that_raises_the_data_offset_reads_other_data() -> None:
    world = World(STANDARD, 1)
    advanced(world, 50)
    later = advanced(world, 2)
    world.restore("49-1", {"skip": 100}, author="ann")
    assert advanced(world, 2) != later
    assert [(event.kind, event.step, dict(event.changes)) for event in world.events] == [
        ("restored", 50, {"skip": (0, 100)})
    ]


def test_a_copy_of_a_run_continues_independently() -> None:
    world = World(STANDARD, 1)
    advanced(world, 3)
    other = world.become(STANDARD)
    ahead = advanced(other, 2)
    assert world.step == 3
    assert advanced(world, 2) == ahead


def test_the_gradient_of_two_ranks_is_the_average_of_theirs() -> None:
    dice = torch.Generator().manual_seed(0)
    one, other = draw("prose", 8, dice), draw("code", 8, dice)
    settings = Settings(lr=1e-3, clip=1e9, weight_decay=0.0, beta2=0.95)
    moments = []
    for batches in ((one, other), (one, one), (other, other)):
        model = Model(0)
        model.update(batches, settings)
        moments.append(model.save().first)
    assert torch.allclose(moments[0], (moments[1] + moments[2]) / 2, atol=1e-7)


@pytest.mark.parametrize(
    ("index", "rank", "is_spoiled"), [(9, 1, False), (10, 1, True), (12, 1, True), (13, 1, False), (10, 0, False)]
)
def test_noise_hits_only_the_batches_and_the_rank_that_it_names(index: int, rank: int, is_spoiled: bool) -> None:
    dice = torch.Generator().manual_seed(0)
    batch = draw("prose", 8, dice)
    spoiled = random_targets(3, 1)(batch, Moment(index, rank, 10, 8), dice)
    assert torch.equal(spoiled.targets, batch.targets) is not is_spoiled
    assert int(spoiled.targets.max()) < SYMBOLS


def test_a_batch_of_nan_on_one_rank_breaks_the_loss_of_that_rank_and_then_all() -> None:
    world = World(STANDARD, 1)
    fault = world.become(STANDARD)
    fault.case = type(STANDARD)(name="nan", about="", spoil=scaled(math.nan, 1, (1,)))
    fault.step = fault.first
    first, second = advanced(fault, 2)
    assert [math.isnan(loss) for loss in first.losses] == [False, True]
    assert [math.isnan(loss) for loss in second.losses] == [True, True]


def test_checkpoints_that_were_left_behind_are_dropped_first_and_pinned_ones_stay() -> None:
    store, state = Checkpoints(), Model(0).save()
    for step in (49, 99, 149):
        store.save(step, state, ())
    assert store.go_back("99-2").step == 99
    assert [saved.id for saved in store.all] == ["49-1", "99-2", "149-3"]
    assert store.newest.id == "99-2"
    store.save(149, state, ())
    assert [saved.id for saved in store.all] == ["49-1", "99-2", "149-4"]
    store.save(199, state, {"49-1"})
    assert [saved.id for saved in store.all] == ["49-1", "99-2", "149-4", "199-5"]


def test_a_report_of_many_steps_has_points_of_several_steps() -> None:
    points = points_of(records(*[2.0] * 100))
    assert len(points) == 25
    assert [(point.first_step, point.last_step) for point in points[:2]] == [(0, 3), (4, 7)]
    loss = points[0].metrics["loss"]
    assert (loss.count, loss.mean, loss.max, loss.worst_rank) == (8, 2.5, 3.0, 1)


def test_a_report_names_the_first_bad_step_and_its_rank() -> None:
    (point,) = points_of([Record(7, Measured((2.0, math.nan), 0.5))])
    loss = point.metrics["loss"]
    assert (loss.nonfinite, loss.first_bad, loss.worst_rank, loss.mean) == (1, 7, 1, 2.0)


def test_slow_steps_are_reported_one_by_one_and_acted_on_later() -> None:
    assert (Pace(5.0).report_steps, Pace(5.0).gate_steps) == (1, 4)
    assert (Pace(0.01).report_steps, Pace(0.01).gate_steps) == (100, 53)


@pytest.mark.long
def test_a_simulated_run_is_recovered_at_a_gate_and_ends_near_its_twin() -> None:
    fault = next(case for case in FAULTS if case.name == "nan_rank")
    base = Simulation.of(fault.twin, 1)
    base.run(fork_point(base.world))
    twin, tuned, untreated = base.fork(fault.twin), base.fork(fault), base.fork(fault, acts=False)
    for run in (twin, tuned, untreated):
        run.run()
    (done,) = tuned.actions
    assert (done.kind, done.rule, done.suspect) == ("recover", "nonfinite", base.world.first)
    assert done.gate == base.world.first + 1 + Pace().gate_steps
    assert tuned.world.values["skip"] == done.skipped > 0
    assert (twin.actions, untreated.actions) == ([], [])
    assert abs(tuned.world.evaluate() - twin.world.evaluate()) < NEAR
    assert untreated.world.evaluate() == math.inf


def raised(detector: Detector, losses: list[float], norms: list[float] | None = None) -> int | None:
    alarm = detector.make()
    found = [alarm(loss, norm) for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True)]
    return found.index(True) if True in found else None


@pytest.mark.parametrize(
    ("name", "delay"),
    [
        ("median/MAD z > 4, 4 of 5", 3),
        ("median/MAD z > 6, single", 0),
        ("moving average z > 4, 3 in a row", 2),
        ("6 standard deviations", 0),
        ("KillLossSpike", 4),
        ("x10", 0),
        ("relative 0.2", 0),
    ],
)
def test_each_detector_raises_an_alarm_so_many_steps_after_a_large_jump(name: str, delay: int) -> None:
    dice = random.Random(0)
    losses = [dice.gauss(2.5, 0.02) for _ in range(200)] + [40.0] * 20
    assert raised(ALARMS[name], losses) == 200 + delay


def test_the_detector_on_gradients_raises_an_alarm_at_once() -> None:
    dice = random.Random(0)
    norms = [dice.uniform(0.9, 1.1) for _ in range(200)] + [40.0]
    assert raised(ALARMS["ZClip's statistic as an alarm"], [2.5] * 201, norms) == 200
