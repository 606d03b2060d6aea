"""Takes a sample into the state: events, the journal of actions, and points. Decides nothing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from instep.tuner import detectors, figures
from instep.tuner.detectors import Look
from instep.tuner.robust import Figure, Reference, Series, appended, before, entry_of, marked, reference, usable
from instep.tuner.rules import (
    GpuLow,
    Grad,
    InputBound,
    Level,
    LossScale,
    Nonfinite,
    Plateau,
    Rule,
    Spike,
    Stalled,
    Threshold,
    TooEasy,
)
from instep.tuner.sample import LOSS, Event, Past, Point, Sample
from instep.tuner.state import (
    MAX_ABANDONED,
    MAX_CHANGES,
    MAX_LEDGER,
    MAX_METRICS,
    Change,
    HoldOff,
    LedgerEntry,
    Memory,
    State,
)

LAST_STEP: Final = 10**15
"""A point of later steps is not a point."""


def observed(state: State, sample: Sample) -> State:
    """The state after everything that the sample reports."""
    for event in sample.events:
        state = _after_event(state, event, sample)
    for past in sample.journal:
        state = _after_journal(state, past, sample)
    if state.view is not None and state.view != sample.view:
        state = held_off(state, "a view change")
    if state.paused and not sample.paused:
        state = held_off(state, "a resume")
    state = replace(state, view=sample.view, paused=sample.paused)
    for point in sample.points:
        if 0 <= point.first_step <= point.last_step <= LAST_STEP:
            state = _after_point(state, point, sample)
    memories = dict(state.memories)
    for name, rule in state.rules.enabled:
        if isinstance(rule, Stalled):
            memories[name] = figures.stalled(rule, memories.get(name, Memory()), sample, state.step)
    return replace(state, memories=memories)


def held_off(state: State, why: HoldOff) -> State:
    return replace(state, hold_off_ran=state.ran, hold_off_why=why)


def rewound(state: State, step: int) -> State:
    """The state after the run went back to `step`, which runs next: what was seen of later steps is dropped.

    A change made after that step holds all the same, so it counts as one made at `step`.
    """
    memories = {name: _rewound_memory(memory, step) for name, memory in state.memories.items()}
    return replace(
        state,
        step=step - 1,
        series={metric: before(series, step) for metric, series in state.series.items()},
        memories=memories,
        changes=tuple(replace(change, step=min(change.step, step)) for change in state.changes),
    )


def _with_abandoned(state: State, step: int, sample: Sample) -> State:
    """The state in which no checkpoint from `step` on is used any more: those steps were taken back."""
    abandoned = [item.id for item in sample.checkpoints if item.step >= step and item.id not in state.abandoned]
    return replace(state, abandoned=(*state.abandoned, *abandoned)[-MAX_ABANDONED:])


def settled(state: State, past: Past, newest: int) -> State:
    """The state with the outcome of an action, or with an action that another tuner has decided.

    How many steps were run since the latter is not known: at least as many as lie between it and the newest step.
    """
    known = next((entry for entry in state.ledger if entry.id == past.id), None)
    if known is None:
        ran = state.ran - max(0, newest - past.step)
        entry = LedgerEntry.of(past, ran)
        state = replace(state, ledger=(*state.ledger, entry)[-MAX_LEDGER:], actions=state.actions + 1)
    else:
        entry = replace(known, outcome=past.outcome, settled_ran=state.ran, peak=_peak(state, known))
        state = replace(state, ledger=tuple(entry if item is known else item for item in state.ledger))
    if entry.outcome == "done" and entry.skipped_to is not None:
        state = replace(state, skipped_to=max(state.skipped_to, entry.skipped_to))
    return state


def _after_event(state: State, event: Event, sample: Sample) -> State:
    if event.action is None and (event.changes or event.kind == "restored"):
        state = replace(state, person_ran=state.ran)
    if event.action is not None:
        known = next((entry for entry in state.ledger if entry.id == event.action), None)
        if known is not None and known.outcome == "open":
            state = settled(state, replace(known, outcome="done"), state.step)
    elif event.changes or event.kind != "plan":
        change = Change(step=event.step, plan=event.plan, changes=event.changes)
        state = held_off(replace(state, changes=(*state.changes, change)[-MAX_CHANGES:]), "a person's change")
    step = max(event.step, 0)
    if event.kind == "restored" or (event.kind == "view" and step <= state.step):
        state = _with_abandoned(rewound(state, step), step, sample)
    if event.kind == "plan":
        return state
    return held_off(state, "a restore" if event.kind == "restored" else "a view change")


def _peak(state: State, entry: LedgerEntry) -> float | None:
    """The highest loss since the first suspect step, as far as it is still known."""
    values = [item.mean for item in state.series.get(LOSS, ()) if item.first >= entry.suspect]
    return max([*values, *([] if entry.peak is None else [entry.peak])], default=None)


def _after_journal(state: State, past: Past, sample: Sample) -> State:
    known = next((entry for entry in state.ledger if entry.id == past.id), None)
    if known is not None and known.outcome != "open":
        return state  # the first outcome holds
    return settled(state, past, max([state.step, *(point.last_step for point in sample.points)]))


def _rewound_memory(memory: Memory, step: int) -> Memory:
    hits = tuple(item for item in memory.hits if item[0] < step)
    if memory.best_step is None or memory.best_step >= step:
        return Memory(hits=hits)
    return Memory(hits=hits, best=memory.best, best_step=memory.best_step)


def _after_point(state: State, point: Point, sample: Sample) -> State:
    if point.first_step <= state.step:
        state = rewound(state, point.first_step)
    reported = _united(state.reported, tuple(point.metrics))
    finite = tuple(name for name, item in point.metrics.items() if item.count > 0 and usable(item.mean) is not None)
    series, normals = _appended(state, point)
    state = replace(
        state,
        step=point.last_step,
        ran=state.ran + point.steps,
        reported=reported,
        finite=_united(state.finite, finite),
        series=series,
    )
    return replace(state, memories=_memories(state, point, sample, normals))


def _united(known: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    news = tuple(name for name in more if name not in known)
    return (*known, *news)[:MAX_METRICS] if news else known


def _figures(state: State) -> dict[str, Figure]:
    """The metrics that are kept as series, and which of their figures counts."""
    rules = [rule for _, rule in state.rules.enabled if isinstance(rule, Spike | Level | TooEasy | Plateau | Grad)]
    kept: dict[str, Figure] = dict.fromkeys((rule.metric for rule in rules), "mean")
    return kept | {rule.metric: "max" for rule in rules if isinstance(rule, Grad)}


def _appended(state: State, point: Point) -> tuple[dict[str, Series], dict[str, Reference | None]]:
    """The series with the point's values, and what these are compared with."""
    series, normals = dict(state.series), dict[str, Reference | None]()
    for metric, figure in _figures(state).items():
        window = point.metrics.get(metric)
        entry = entry_of(point.first_step, point.last_step, window) if window is not None else None
        if entry is not None:
            past = series.get(metric, ())
            value = entry.max if figure == "max" else entry.mean
            normals[metric] = reference(past, value, entry.first, figure=figure)
            series[metric] = appended(past, marked(entry, normals[metric], figure))
    return series, normals


def _memories(state: State, point: Point, sample: Sample, normals: Mapping[str, Reference | None]) -> dict[str, Memory]:
    """What all rules remember after a point. Those that corroborate others come first."""
    memories = dict(state.memories)
    look = Look(
        point=point,
        series=state.series,
        normals=normals,
        finite=frozenset(state.finite),
        nan_by_design=frozenset(state.rules.nan_by_design),
        changes=state.changes,
        change_within_steps=state.rules.brakes.change_within_steps,
    )
    rules = sorted(state.rules.enabled, key=lambda item: not isinstance(item[1], Grad | TooEasy))
    for name, rule in rules:
        memories[name] = memory = _seen(rule, memories.get(name, Memory()), look, sample)
        if isinstance(rule, Grad):
            steps = tuple(first for first, _, _, calm in memory.hits if calm)
            look = replace(look, gradients=(*look.gradients, *steps))
        elif isinstance(rule, TooEasy):
            look = replace(look, is_too_easy=look.is_too_easy or memory.detection is not None)
    return memories


def _seen(rule: Rule, memory: Memory, look: Look, sample: Sample) -> Memory:
    match rule:
        case Nonfinite():
            return detectors.nonfinite(rule, memory, look)
        case Spike():
            return detectors.spike(rule, memory, look)
        case Level():
            return detectors.slow(rule, memory, look)
        case TooEasy():
            return detectors.too_easy(rule, memory, look)
        case Grad():
            return detectors.grad(rule, memory, look)
        case LossScale():
            return detectors.loss_scale(rule, memory, look)
        case Plateau():
            return detectors.plateau(rule, memory, look)
        case Threshold():
            return figures.threshold(rule, memory, look)
        case GpuLow():
            return figures.gpu_low(rule, memory, look)
        case InputBound():
            return figures.input_bound(rule, memory, look, sample.step_time_s)
        case Stalled():
            return memory
