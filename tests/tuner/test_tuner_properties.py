"""What holds for the decision whatever the samples are: hypothesis draws them, broken ones included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_run import SimulatedRun, Tuned, bad_data, window

from instep.tuner import texts
from instep.tuner.decide import decide
from instep.tuner.escalation import _begins
from instep.tuner.record import decode_sample, encode_sample
from instep.tuner.rules import Rules
from instep.tuner.sample import Checkpoint, Event, Parameter, Past, Point, Sample, Window
from instep.tuner.state import LedgerEntry, State, decode_state, encode_state, initial
from instep.tuner.verdict import Action, Verdict

ANY = st.floats(allow_nan=True, allow_infinity=True)
HUGE = 10**400
STEPS = st.one_of(st.integers(-5, 600), st.integers(-5, 600), st.sampled_from([HUGE, -HUGE]))
NAMES = st.sampled_from(["loss", "grad_norm", "loss_scale", "data_wait_s", "gpu_utilization", "other"])
NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-5, 500), st.just(HUGE))
SCALARS = st.one_of(NUMBERS, st.sampled_from([None, True, "x"]))
CHANGES = st.dictionaries(st.sampled_from(["lr", "skip", "clip"]), st.tuples(SCALARS, SCALARS), max_size=2)
CHECKPOINTS = st.builds(Checkpoint, st.integers(0, 9).map("{}-1".format), STEPS, st.sampled_from([True, False, None]))

any_window = st.builds(
    Window,
    count=st.integers(0, 20),
    mean=st.one_of(st.none(), ANY, st.floats(0.1, 9)),
    min=st.one_of(st.none(), ANY),
    max=st.one_of(st.none(), ANY, st.floats(0.1, 20)),
    last=st.one_of(st.none(), ANY),
    nonfinite=st.sampled_from([0, 0, 0, 1, 7, HUGE]),
    first_bad=st.one_of(st.none(), STEPS),
    worst_rank=st.one_of(st.none(), st.integers(0, 9)),
    steps=st.one_of(st.none(), st.integers(-3, 20)),
)
any_point = st.builds(
    lambda first, more, metrics: Point(first, first + more, metrics),
    STEPS,
    st.sampled_from([0, 0, 0, 3, 9, -2, 10**12]),
    st.dictionaries(NAMES, any_window, max_size=3),
)
any_event = st.builds(
    Event,
    kind=st.sampled_from(["plan", "view", "restored"]),
    step=STEPS,
    plan=st.one_of(st.none(), st.integers(1, 99)),
    checkpoint=st.none(),
    changes=CHANGES,
    action=st.one_of(st.none(), st.just("1-1")),
)
any_past = st.builds(
    Past,
    id=st.sampled_from(["1-1", "2-2", "9-3"]),
    rule=st.sampled_from(["spike", "gone"]),
    kind=st.sampled_from(["recover", "pause", "cut_lr", "take_back", "revert"]),
    step=STEPS,
    suspect=STEPS,
    outcome=st.sampled_from(["open", "done", "failed", "rejected"]),
    checkpoint=st.one_of(st.none(), st.just("3-1")),
    checkpoint_step=st.one_of(st.none(), STEPS),
    changes=CHANGES,
    skipped_to=st.one_of(st.none(), STEPS),
)
any_parameter = st.builds(
    Parameter,
    SCALARS,
    st.one_of(st.none(), st.just(0.0)),
    st.one_of(st.none(), st.just(300.0)),
    st.booleans(),
    st.booleans(),
)
any_sample = st.builds(
    Sample,
    points=st.lists(any_point, max_size=4).map(tuple),
    view=st.integers(0, 2),
    world_size=st.sampled_from([1, 1, 1, 8, 0, -1, HUGE]),
    reporting=st.integers(0, 8),
    age_s=st.one_of(st.just(0.0), ANY),
    stalled_s=st.one_of(st.just(0.0), ANY),
    step_time_s=st.one_of(st.none(), ANY),
    parameters=st.dictionaries(st.sampled_from(["lr", "skip", "clip"]), any_parameter, max_size=3),
    checkpoints=st.lists(CHECKPOINTS, max_size=4).map(tuple),
    events=st.lists(any_event, max_size=2).map(tuple),
    journal=st.lists(any_past, max_size=2).map(tuple),
    paused=st.booleans(),
    evaluating=st.booleans(),
    silenced=st.booleans(),
    others_ill=st.sampled_from([0, 0, 1, HUGE]),
)


def loose() -> Rules:
    """Rules that let through whatever they can, so that actions happen often."""
    rules = Rules()
    brakes = rules.brakes.model_copy(update={"hold_off_steps": 1, "cool_down_steps": 1, "rewind_steps": 1})
    return rules.model_copy(update={"brakes": brakes})


def warm(seed: int = 0) -> State:
    """A state that knows enough steps to judge."""
    return Tuned(SimulatedRun(seed=seed), loose()).steps(100, each=20).state


WARM = warm()


@settings(max_examples=120)
@given(st.booleans(), st.lists(any_sample, max_size=6))
def test_a_decision_never_raises_and_repeats_itself(from_warm: bool, samples: list[Sample]) -> None:
    state = WARM if from_warm else initial(loose(), ("all",))
    for sample in samples:
        after, verdict = decide(state, sample)
        assert repr(decide(state, sample)) == repr((after, verdict))  # repr: nan is not equal to itself
        assert texts.verdict(verdict) is not None
        stored = decode_state(encode_state(after))
        assert repr(stored) == repr(after), "the state survives being stored"
        line = encode_sample(sample)
        assert encode_sample(decode_sample(line)) == line
        state = stored


@st.composite
def stories(draw: st.DrawFn) -> list[tuple[str, int]]:
    """What happens to a run, and for how many steps."""
    kinds = ["well", "spike", "nan", "person", "view", "restore", "silence", "pause", "stale", "refuse", "reply"]
    return draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(1, 60)), min_size=2, max_size=12))


def told(story: list[tuple[str, int]], each: int, resolution: int) -> Iterator[tuple[State, Sample, State, Verdict]]:
    """Plays a story to a tuner whose state is stored after every sample."""
    run = SimulatedRun(resolution=resolution, every=20)
    tuned = Tuned(run, loose(), obeys=True)
    tuned.steps(100, each=20)
    for kind, steps in story:
        hurt = {"spike": 1.0, "nan": math.nan}.get(kind, 0.0)
        run.fault = (lambda now: hurt) if hurt else (lambda now: 0.0)  # noqa: B023 - played before the next one
        if kind == "well" and not math.isfinite(run.damage):
            run.damage = 0.0
        if kind == "person":
            run.change(lr=0.02)
        if kind == "restore" and run.checkpoints:
            run.restore(next(reversed(run.checkpoints)))
        tuned.obeys = kind != "refuse"
        held = {
            "silence": {"silenced": True},
            "pause": {"paused": True},
            "stale": {"age_s": 60.0},
            "view": {"view": steps},
        }
        run.context = lambda sample, held=held.get(kind, {}): replace(sample, **held)  # type: ignore[misc]  # bound now
        run.paused = False
        for _ in range(0, steps, each):
            sample, before = run.sample(each), decode_state(encode_state(tuned.state))
            assert before == tuned.state
            verdict = tuned.see(sample)
            yield before, sample, tuned.state, verdict


@settings(max_examples=40)
@given(stories(), st.sampled_from([1, 5, 20]), st.sampled_from([1, 5]))
def test_no_story_breaks_a_promise(story: list[tuple[str, int]], each: int, resolution: int) -> None:
    actions: list[tuple[Action, tuple[LedgerEntry, ...]]] = []
    for before, sample, after, verdict in told(story, each, resolution):
        again, same = decide(before, sample)
        assert (again, same) == (after, verdict), "the same state and sample decide the same"
        action = verdict.action
        if action is None:
            continue
        actions.append((action, before.ledger))
        assert not any((sample.silenced, sample.paused, sample.age_s > 10, sample.others_ill))
        assert after.hold_off_ran is None or after.ran - after.hold_off_ran >= 1
        assert action.rule in after.armed
        _check_values(action, sample)
    brakes = loose().brakes
    assert len(actions) <= brakes.budget_per_run
    for action, ledger in actions:
        _check_checkpoint(action, ledger)


def _check_values(action: Action, sample: Sample) -> None:
    """Only agreed values are replaced, learning rates fall, and the data offset rises."""
    for name, (old, new) in action.changes.items():
        assert sample.parameters[name].value == old
        if name == "lr" and action.kind != "revert":
            assert isinstance(new, float)
            assert isinstance(old, float)
            assert new < old
        assert name != sample.data_offset
    assert action.raise_offset >= 0
    if action.checkpoint is not None:
        assert action.offset is None or action.raise_offset > 0


def _check_checkpoint(action: Action, ledger: tuple[LedgerEntry, ...]) -> None:
    if action.checkpoint is None:
        return
    for entry in ledger:
        if entry.outcome == "done" and _begins(entry, 200) <= action.suspect <= entry.step + 200:
            assert entry.checkpoint != action.checkpoint, "the same checkpoint twice for the same place"


@settings(max_examples=25)
@given(st.integers(0, 99), st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_how_steps_are_divided_into_samples_makes_no_difference(seed: int, sizes: list[int]) -> None:
    """The detections are the same; an action can come no earlier than its sample."""
    items = [point for sample in _samples(seed) for point in sample.points]
    whole = _detections(items, [1])
    assert "spike" in {rule for rule, _ in whole}
    assert _detections(items, sizes) == whole


def _samples(seed: int) -> list[Sample]:
    run = SimulatedRun(bad_data(150 + seed, 170 + seed), seed=seed)
    return [run.sample() for _ in range(200 + seed)]


def _detections(items: list[Point], sizes: list[int]) -> set[tuple[str, int]]:
    """Which rules began to fire, and from which step on they suspect the run."""
    state, rest, turn, found = initial(), list(items), 0, set()
    while rest:
        size = sizes[turn % len(sizes)]
        state, verdict = decide(state, Sample(points=tuple(rest[:size])))
        rest, turn = rest[size:], turn + 1
        found |= {(rule.rule, rule.detection.suspect) for rule in verdict.rules if rule.began and rule.detection}
    return found


@settings(max_examples=25)
@given(st.integers(0, 50), st.sampled_from([2, 5, 10]))
def test_coarse_points_find_the_same_faults_up_to_their_resolution(seed: int, resolution: int) -> None:
    def found(size: int) -> int:
        usual = SimulatedRun(bad_data(200, 10_000), seed=seed)
        state, losses = initial(), [usual.train()[0] for _ in range(260)]
        for at in range(0, 260, size):
            values = {"loss": window(*losses[at : at + size])}
            state, verdict = decide(state, Sample(points=(Point(at, at + size - 1, values),)))
            spike = next(rule for rule in verdict.rules if rule.rule == "spike")
            if spike.began:
                return verdict.step
        return -1

    fine, coarse = found(1), found(resolution)
    assert fine == 212
    assert fine - resolution <= coarse <= 201 + 3 * max(resolution, 6)


@settings(max_examples=10)
@given(st.integers(1, 4), st.floats(0.0, 0.08), st.integers(0, 9))
def test_a_state_stays_small(resolution: int, noise: float, seed: int) -> None:
    run = SimulatedRun(resolution=resolution, noise=noise, seed=seed)
    tuned = Tuned(run, armed=()).steps(400, each=40)
    for series in tuned.state.series.values():
        assert len(series) <= 256
    assert len(encode_state(tuned.state)) < 100_000
