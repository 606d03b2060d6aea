"""Each detector on its own: what makes it fire, what does not, and what it says."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
from simulated_run import SimulatedRun, Tuned, point, window

from instep.tuner import texts
from instep.tuner.rule_file import read_rules
from instep.tuner.rules import Rules
from instep.tuner.sample import Event, Point, Sample
from instep.tuner.verdict import RuleVerdict

Series = Callable[[int], float]


def noisy(value: float, noise: float = 0.03, seed: int = 0) -> Series:
    source = random.Random(seed)
    return lambda step: value * math.exp(source.gauss(0, noise))


def points(steps: Iterable[int], **metrics: Series) -> list[Point]:
    return [point(step, **{name: series(step) for name, series in metrics.items()}) for step in steps]


def seen(items: Iterable[Point], rules: Rules | None = None, events: tuple[Event, ...] = ()) -> Tuned:
    """What an unarmed tuner makes of the points, one in each sample."""
    tuned = Tuned(SimulatedRun(), rules or Rules(), armed=())
    for item in items:
        now = tuple(event for event in events if event.step == item.first_step)
        tuned.see(Sample(points=(item,), events=now))
    return tuned


def of(tuned: Tuned, rule: str) -> RuleVerdict:
    return next(found for found in tuned.verdicts[-1].rules if found.rule == rule)


def fired(tuned: Tuned, rule: str) -> list[int]:
    """The steps at which the rule began to fire."""
    return [verdict.step for verdict in tuned.verdicts for found in verdict.rules if found.rule == rule and found.began]


def stepwise(before: float, after: float, at: int, until: int = 10**9) -> Series:
    usual = noisy(1.0)
    return lambda step: usual(step) * (after if at <= step < until else before)


# -- nonfinite -----------------------------------------------------------------------------------------------------


def test_one_value_that_is_not_finite_fires_in_the_same_report() -> None:
    tuned = seen(points(range(100), loss=lambda step: math.nan if step == 50 else 2.5))
    assert fired(tuned, "nonfinite") == [50]


def test_a_single_rank_that_is_not_finite_is_found_and_named() -> None:
    bad = Point(100, 109, {"loss": replace(window(*[2.5] * 79, math.nan, rank=3), first_bad=104)})
    tuned = seen([*points(range(100), loss=noisy(2.5)), bad])
    found = of(tuned, "nonfinite").detection
    assert found is not None
    assert (found.suspect, found.rank) == (104, 3)
    assert texts.detection("nonfinite", found) == "loss was not finite in step 104 on rank 3"


def test_a_metric_that_is_nan_by_design_is_ignored_when_it_is_listed() -> None:
    both = '[rules.nonfinite]\nmetrics = ["loss", "aux"]'
    bad: Series = lambda step: math.nan if step > 50 else 1.0  # noqa: E731 - one line
    items = points(range(100), loss=noisy(2.5), aux=bad)
    assert fired(seen(items, read_rules(both)), "nonfinite") == [51]
    assert fired(seen(items, read_rules('nan_by_design = ["aux"]\n' + both)), "nonfinite") == []


def test_a_metric_that_was_never_finite_is_only_watched() -> None:
    tuned = seen(points(range(100), loss=noisy(2.5), grad_norm=lambda step: math.nan))
    found = of(tuned, "nonfinite")
    assert found.status == "watching"
    assert "list it under nan_by_design" in texts.rule(found)


def test_a_loss_that_was_never_finite_fires_after_some_steps() -> None:
    """A tuner that takes over may find the run like that."""
    tuned = seen(points(range(100, 150), loss=lambda step: math.nan))
    assert fired(tuned, "nonfinite") == [119]
    found = of(tuned, "nonfinite").detection
    assert found is not None
    assert found.suspect == 100


def test_gradients_that_are_not_finite_are_normal_with_a_loss_scale() -> None:
    bad: Series = lambda step: math.inf if step == 50 else 1.0  # noqa: E731 - one line
    assert fired(seen(points(range(100), loss=noisy(2.5), grad_norm=bad)), "nonfinite") == [50]
    scaled = points(range(100), loss=noisy(2.5), grad_norm=bad, loss_scale=lambda step: 1024.0)
    assert fired(seen(scaled), "nonfinite") == []


# -- spike ---------------------------------------------------------------------------------------------------------


def gradients(spike_at: int) -> Series:
    usual = noisy(1.0, 0.2)
    return lambda step: 5000.0 if step == spike_at else usual(step)


def test_a_spike_after_a_gradient_spike_fires_with_the_fourth_step_that_stands_out() -> None:
    tuned = seen(points(range(220), loss=stepwise(2.5, 5.0, 200, 210), grad_norm=gradients(199)))
    assert fired(tuned, "spike") == [203]
    found = next(item.detection for item in tuned.verdicts[203].rules if item.rule == "spike")
    assert found is not None
    assert found.suspect == 200
    assert found.normal == pytest.approx(2.5, rel=0.05)
    assert found.evidence == ("gradient",)


def test_a_spike_after_a_change_or_a_restore_fires_with_the_fourth_step_that_stands_out() -> None:
    for event in (raised_lr(195), Event(kind="restored", step=196, plan=7), Event(kind="view", step=196)):
        tuned = seen(points(range(220), loss=stepwise(2.5, 5.0, 200, 210)), events=(event,))
        assert fired(tuned, "spike") == [203]


@pytest.mark.parametrize("norms", [None, gradients(200)])
def test_a_spike_that_nothing_explains_must_last(norms: Series | None) -> None:
    """A gradient spike in the step in which the loss rises explains nothing: new data does both."""
    more = {} if norms is None else {"grad_norm": norms}
    assert fired(seen(points(range(220), loss=stepwise(2.5, 5.0, 200), **more)), "spike") == [211]
    tuned = seen(points(range(211), loss=stepwise(2.5, 5.0, 200, 211), **more))
    assert fired(tuned, "spike") == []
    assert "without a gradient spike or a change that explains it" in texts.rule(of(tuned, "spike"))


def test_new_data_that_is_learned_soon_is_no_spike() -> None:
    usual = noisy(2.5)
    loss: Series = lambda step: usual(step) * (1 + 2.0 * 0.8 ** (step - 200) if step >= 200 else 1)  # noqa: E731 - one line
    assert fired(seen(points(range(300), loss=loss, grad_norm=gradients(200))), "spike") == []


def test_a_small_rise_is_no_spike_however_quiet_the_run() -> None:
    tuned = seen(points(range(220), loss=lambda step: 2.6 if step >= 200 else 2.5), events=(raised_lr(195),))
    assert fired(tuned, "spike") == []


def test_three_outliers_are_watched_and_do_not_fire() -> None:
    tuned = seen(points(range(203), loss=stepwise(2.5, 9.0, 200)))
    assert fired(tuned, "spike") == []
    assert "3 of 4 steps stand out" in texts.rule(of(tuned, "spike"))


@pytest.mark.parametrize("outliers", [1, 3])
def test_outliers_within_one_point_of_many_steps_do_not_fire(outliers: int) -> None:
    usual = noisy(2.5)
    items = [Point(at, at + 9, {"loss": window(*(usual(at) for _ in range(10)))}) for at in range(0, 300, 10)]
    values = [50.0] * outliers + [usual(0) for _ in range(10 - outliers)]
    tuned = seen([*items, Point(300, 309, {"loss": window(*values)})])
    assert fired(tuned, "spike") == []


def test_a_point_of_many_steps_with_one_loss_counts_as_one_step() -> None:
    """The script reports its loss every 10 steps, on 8 ranks."""
    usual = noisy(2.5)

    def sparse(at: int, factor: float) -> Point:
        return Point(at, at + 9, {"loss": replace(window(*(usual(at) * factor for _ in range(8))), steps=1)})

    items = [sparse(at, 1.0) for at in range(0, 1000, 10)] + [sparse(at, 3.0) for at in range(1000, 1030, 10)]
    tuned = seen(items, events=(raised_lr(1000),))
    assert fired(tuned, "spike") == []
    tuned.see(Sample(points=(sparse(1030, 3.0),)))
    assert fired(tuned, "spike") == [1039]


def test_a_spike_within_one_point_of_many_steps_fires_at_once() -> None:
    usual = noisy(2.5)
    items = [Point(at, at + 9, {"loss": window(*(usual(at) for _ in range(10)))}) for at in range(0, 300, 10)]
    bad = [Point(at, at + 9, {"loss": window(*(usual(0) * 2 for _ in range(10)))}) for at in (300, 310, 320)]
    assert fired(seen([*items, *bad], events=(replace(raised_lr(0), step=300),)), "spike") == [309]
    assert fired(seen([*items, *bad]), "spike") == [329], "without a change it must last"


def test_a_spike_is_not_judged_before_enough_steps_are_known() -> None:
    tuned = seen(points(range(60), loss=stepwise(2.5, 50.0, 40)))
    assert fired(tuned, "spike") == []
    assert of(tuned, "spike").progress.lacks == "reference"


def test_a_spike_that_lasts_does_not_become_normal_at_once_and_does_so_in_the_end() -> None:
    tuned = seen(points(range(900), loss=stepwise(2.5, 5.0, 200)))
    live = [v.step for v in tuned.verdicts for r in v.rules if r.rule == "spike" and r.status == "fired"]
    assert live[0] == 211
    assert 380 < live[-1] < 600


@pytest.mark.parametrize("value", [0.0, -2.5])
def test_losses_that_are_zero_or_negative_are_compared_linearly(value: float) -> None:
    source = random.Random(0)
    usual: Series = lambda step: value + source.gauss(0, 0.1) + (5.0 if step >= 200 else 0.0)  # noqa: E731 - one line
    assert fired(seen(points(range(220), loss=usual)), "spike") == [211]


def test_a_loss_without_any_noise_does_not_fire_on_rounding() -> None:
    tuned = seen(points(range(300), loss=lambda step: 2.5 if step < 200 else 2.5000001))
    assert fired(tuned, "spike") == []


# -- level ---------------------------------------------------------------------------------------------------------


def raised_lr(step: int) -> Event:
    return Event(kind="plan", step=step, plan=1, changes={"lr": (0.01, 0.02)}, author="anna")


def test_a_slow_rise_needs_corroboration() -> None:
    tuned = seen(points(range(230), loss=stepwise(2.5, 2.8, 200)))
    assert fired(tuned, "level") == []
    assert of(tuned, "level").progress.lacks == "evidence"
    assert "without a gradient spike or a change" in texts.rule(of(tuned, "level"))


def test_a_slow_rise_after_a_change_fires() -> None:
    tuned = seen(points(range(230), loss=stepwise(2.5, 2.8, 200)), events=(raised_lr(195),))
    (step,) = fired(tuned, "level")
    assert 204 <= step <= 225
    found = of(tuned, "level").detection
    assert found is not None
    assert found.evidence == ("change",)
    assert 185 <= found.suspect <= 205


def test_a_slow_rise_long_after_a_change_does_not_fire() -> None:
    tuned = seen(points(range(330), loss=stepwise(2.5, 2.8, 300)), events=(raised_lr(150),))
    assert fired(tuned, "level") == []


def test_a_gradient_spike_corroborates_and_halves_the_time() -> None:
    loss = points(range(230), loss=stepwise(2.5, 2.8, 200), grad_norm=gradients(199))
    tuned = seen(loss)
    (step,) = fired(tuned, "level")
    (late,) = fired(seen(loss, read_rules("[rules.level]\nfor = 16")), "level")
    assert fired(tuned, "grad") == [199]
    assert step + 4 == late


def test_gradients_that_have_become_noisier_explain_nothing() -> None:
    usual = noisy(1.0, 0.2)
    norm: Series = lambda step: usual(step) * (9.0 if step >= 190 else 1.0)  # noqa: E731 - one line
    assert fired(seen(points(range(230), loss=stepwise(2.5, 2.8, 200), grad_norm=norm)), "level") == []


# -- the others ----------------------------------------------------------------------------------------------------


def test_a_loss_that_falls_to_nothing_is_too_easy() -> None:
    tuned = seen(points(range(210), loss=stepwise(2.5, 0.01, 200)))
    assert fired(tuned, "too_easy") == [203]
    assert of(tuned, "too_easy").wants is None


def test_a_loss_that_falls_slowly_is_not_too_easy() -> None:
    usual = noisy(1.0)
    tuned = seen(points(range(2000), loss=lambda step: usual(step) * 4 * math.exp(-step / 500)))
    assert fired(tuned, "too_easy") == []


def test_what_follows_easy_data_is_suspect_from_its_beginning() -> None:
    def loss(step: int) -> float:
        return usual(step) * (0.01 if 200 <= step < 230 else 6.0 if step >= 230 else 2.5)

    usual = noisy(1.0)
    tuned = seen(points(range(240), loss=loss))
    assert len(fired(tuned, "spike")) == 1
    wants = next(v.rules[1].wants for v in tuned.verdicts if v.rules[1].began)
    assert wants is not None
    assert wants.suspect == 200


def test_a_gradient_spike_alone_asks_for_nothing() -> None:
    usual = noisy(1.0, 0.2)
    tuned = seen(points(range(210), grad_norm=lambda step: 9000.0 if step == 205 else usual(step), loss=noisy(2.5)))
    assert fired(tuned, "grad") == [205]
    assert of(tuned, "grad").wants is None


def test_a_loss_scale_that_falls_by_many_powers_of_two_fires() -> None:
    scale: Series = lambda step: 65536.0 if step < 300 else max(1.0, 65536.0 / 2 ** (step - 299))  # noqa: E731 - one line
    assert fired(seen(points(range(320), loss_scale=scale)), "loss_scale") == [307]


def test_a_loss_scale_that_calibrates_at_the_start_does_not_fire() -> None:
    scale: Series = lambda step: max(4.0, 65536.0 / 2**step)  # noqa: E731 - one line
    assert fired(seen(points(range(300), loss_scale=scale)), "loss_scale") == []


def test_a_plateau_is_announced_and_ends_with_a_lower_level() -> None:
    rules = read_rules("[rules.plateau]\nfor = 300")
    tuned = seen(points(range(800), loss=stepwise(2.5, 2.0, 600)), rules)
    assert len(fired(tuned, "plateau")) == 1
    assert of(tuned, "plateau").status == "quiet"


def test_a_threshold_waits_for_its_time_and_keeps_firing() -> None:
    rules = read_rules('[rules.hot]\nkind = "threshold"\nmetric = "temp"\nabove = 80.0\nfor = 3\nkeep_firing_for = 5')
    tuned = seen(points(range(40), temp=lambda step: 90.0 if 10 <= step < 20 else 60.0), rules)
    live = [v.step for v in tuned.verdicts for r in v.rules if r.rule == "hot" and r.status == "fired"]
    assert live == list(range(12, 25))


def test_a_threshold_below_ignores_values_that_are_not_finite() -> None:
    rules = read_rules('[rules.low]\nkind = "threshold"\nmetric = "x"\nbelow = 1.0')
    assert fired(seen(points(range(9), x=lambda step: math.nan), rules), "low") == []
    assert fired(seen(points(range(9), x=lambda step: 0.5 if step == 4 else 2.0), rules), "low") == [4]


@pytest.mark.parametrize(("change", "fires"), [({}, True), ({"paused": True}, False), ({"evaluating": True}, False)])
def test_a_run_without_steps_is_stalled_unless_it_is_paused_or_evaluates(change: dict[str, bool], fires: bool) -> None:
    tuned = seen(points(range(5), loss=noisy(2.5)))
    verdict = tuned.see(Sample(stalled_s=400, **change))  # type: ignore[arg-type]  # flags
    (found,) = [item for item in verdict.rules if item.rule == "stalled"]
    assert (found.status == "fired") == fires
    if fires:
        assert texts.rule(found) == "stalled (shadow): fired: no step after step 4 for 400 s (limit 300 s)"


def test_a_run_of_slow_steps_is_not_stalled_within_them() -> None:
    tuned = seen(points(range(5), loss=noisy(2.5)))
    verdict = tuned.see(Sample(stalled_s=400, step_time_s=60))
    assert [item.status for item in verdict.rules if item.rule == "stalled"] == ["quiet"]


def test_idle_gpus_give_advice_and_change_nothing() -> None:
    tuned = Tuned(SimulatedRun())
    for item in points(range(300), gpu_utilization=lambda step: 0.2):
        tuned.see(Sample(points=(item,)))
    assert fired(tuned, "gpu_low") == [199]
    assert tuned.actions == []
    assert "nothing is changed" in texts.rule(of(tuned, "gpu_low"))


def test_waiting_for_data_gives_advice_and_changes_nothing() -> None:
    tuned = Tuned(SimulatedRun())
    for item in points(range(300), data_wait_s=lambda step: 0.4, compute_s=lambda step: 0.6):
        tuned.see(Sample(points=(item,)))
    assert fired(tuned, "input_bound") == [199]
    assert tuned.actions == []
    assert "0.4 of each step waits for data" in texts.rule(of(tuned, "input_bound"))


def test_a_rule_whose_metric_nobody_reports_says_so() -> None:
    tuned = seen(points(range(150), loss=noisy(2.5)))
    assert "grad_norm" in tuned.verdicts[-1].unreported
    assert "loss" not in tuned.verdicts[-1].unreported
    assert texts.rule(of(tuned, "grad")).endswith("quiet: nobody reports its metric")


def test_steps_that_are_run_again_replace_what_was_seen_of_them() -> None:
    tuned = seen(points(range(200), loss=noisy(2.5)))
    tuned.see(Sample(points=tuple(points(range(150, 160), loss=noisy(2.5)))))
    series = tuned.state.series["loss"]
    assert [entry.first for entry in series] == list(range(160))
    assert tuned.state.ran == 210
