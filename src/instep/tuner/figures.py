"""The detectors that compare a figure with a fixed limit: thresholds, idle GPUs, data waits, no progress. Pure."""

from __future__ import annotations

from dataclasses import replace

from instep.tuner.detectors import KEEP_STEPS, Look, dropped, found, held
from instep.tuner.robust import steps_of, usable
from instep.tuner.rules import GpuLow, InputBound, Stalled, Threshold
from instep.tuner.sample import COMPUTE, Sample
from instep.tuner.state import Memory
from instep.tuner.verdict import Detection, Progress


def threshold(rule: Threshold, memory: Memory, look: Look) -> Memory:
    window = look.point.metrics.get(rule.metric)
    value = usable(getattr(window, rule.figure)) if window is not None and window.count > 0 else None
    if value is None:
        return dropped(memory, look.point, rule.keep_firing_for)
    above, below = rule.above, rule.below
    is_met = (above is not None and value > above) or (below is not None and value < below)
    limit = above if above is not None else below
    return _lasting(rule.metric, memory, look, is_met, value, limit, rule.for_steps, rule.keep_firing_for)


def gpu_low(rule: GpuLow, memory: Memory, look: Look) -> Memory:
    window = look.point.metrics.get(rule.metric)
    value = usable(window.mean) if window is not None and window.count > 0 else None
    if value is None:
        return dropped(memory, look.point)
    return _lasting(rule.metric, memory, look, value < rule.below, value, rule.below, rule.for_steps)


def input_bound(rule: InputBound, memory: Memory, look: Look, step_time_s: float | None) -> Memory:
    """The share of a step that waits for data; a step is `compute_s` and the wait, or as long as measured."""
    point = look.point
    wait = usable(window.mean) if (window := point.metrics.get(rule.metric)) is not None and window.count else None
    compute = usable(window.mean) if (window := point.metrics.get(COMPUTE)) is not None and window.count else None
    if wait is None:
        return dropped(memory, point)
    whole = wait + compute if compute is not None else usable(step_time_s)
    if whole is None or whole <= 0 or wait < 0:
        return dropped(memory, point)
    share = min(1.0, wait / whole)
    return _lasting(rule.metric, memory, look, share > rule.above, share, rule.above, rule.for_steps)


def stalled(rule: Stalled, memory: Memory, sample: Sample, step: int) -> Memory:
    """Once for each sample: without a step there is no point."""
    usual_s = usable(sample.step_time_s) or 0.0
    limit = max(rule.after_s, rule.step_times * usual_s)
    idle_s = usable(sample.stalled_s)
    if sample.paused or sample.evaluating or idle_s is None or idle_s <= limit:
        return replace(memory, detection=None, announced=False)
    detection = Detection(metric="step", suspect=step, since=step, last=step, figure=idle_s, limit=limit)
    return replace(memory, detection=detection)


def _lasting(
    metric: str,
    memory: Memory,
    look: Look,
    is_met: bool,
    value: float,
    limit: float | None,
    for_steps: int,
    keep: int = KEEP_STEPS,
) -> Memory:
    point, window = look.point, look.point.metrics[metric]
    memory = held(memory, point, steps_of(point.first_step, point.last_step, window), is_met)
    if memory.since is None:
        return replace(dropped(memory, look.point, keep), progress=Progress())
    progress = Progress(have=memory.held, need=for_steps, lacks="steps" if memory.held < for_steps else None)
    since, memory = memory.since, replace(memory, progress=progress)
    if memory.held < for_steps:
        return dropped(memory, look.point, keep)
    detection = Detection(
        metric=metric,
        suspect=since,
        since=since,
        last=look.point.last_step,
        figure=value,
        limit=limit,
        value=value,
        rank=window.worst_rank,
    )
    return found(memory, look.point, detection, keep)
