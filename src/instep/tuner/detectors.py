"""The detectors: what each kind of rule makes of the next point. One function for each, counted in steps. Pure.

A detector sees points one after another, never samples: how steps are divided into samples makes no difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from instep.tuner.robust import Entry, Reference, Series, level, recent, reference, steps_above, usable
from instep.tuner.rules import Grad, Level, LossScale, Nonfinite, Plateau, Rule, Spike, TooEasy
from instep.tuner.sample import GRAD_NORM, LOSS, LOSS_SCALE, Point, Window
from instep.tuner.state import Change, Memory
from instep.tuner.verdict import Detection, Evidence, Progress

KEEP_STEPS: Final = 20
"""A detection is dropped when its condition has not been met for more steps than that."""
_LEAST_RECENT: Final = 3
"""Points that a level is made from at the least: the median of three ignores one outlier."""
_HITS_KEPT: Final = 8
_FEW: Final = 4
_FEW_WITHIN: Final = 50
"""More gradient spikes than `_FEW` in so many steps are no event: gradients have become noisier, as with a smaller
batch."""
_CALM_Z: Final = 3.0
"""A loss up to this z is normal."""

Hits: TypeAlias = tuple[tuple[int, int, int, int], ...]
"""See `Memory.hits`."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a detector sees beside its own memory."""

    point: Point
    series: Mapping[str, Series]
    """With the point's values appended."""
    normals: Mapping[str, Reference | None]
    """By metric, what the point is compared with."""
    finite: frozenset[str]
    """Metrics that were finite at least once."""
    nan_by_design: frozenset[str]
    gradients: tuple[int, ...] = ()
    """Steps of the newest gradient spikes, as far as they are rare and the loss was still normal. The loss of a step is
    computed before its update: where both rise in one step, the data did it, not the update."""
    is_too_easy: bool = False
    """Whether a rule has just found that the data was too easy."""
    changes: tuple[Change, ...] = ()
    change_within_steps: int = 100

    def entry(self, metric: str) -> Entry | None:
        """The point's entry; None if it has no value."""
        series = self.series.get(metric, ())
        return series[-1] if series and series[-1].last == self.point.last_step else None

    def compared(self, metric: str) -> tuple[Entry, Reference] | None:
        """The point's entry and its reference; None if one of them is missing."""
        entry, normal = self.entry(metric), self.normals.get(metric)
        return None if entry is None or normal is None else (entry, normal)


def _not_compared(metric: str, memory: Memory, look: Look) -> Memory:
    """The memory after a point without a value or without a reference."""
    memory = dropped(memory, look.point)
    return memory if look.entry(metric) is None else replace(memory, progress=Progress(lacks="reference"))


def found(memory: Memory, point: Point, detection: Detection, keep: int = KEEP_STEPS) -> Memory:
    """The memory with a detection: a new one, or the live one with its worst figures."""
    live = memory.detection
    if live is None or _is_over(memory, live, point.first_step, keep):
        return replace(memory, detection=detection, announced=False)
    worse = live if _excess(live) >= _excess(detection) else detection
    return replace(
        memory,
        detection=replace(
            live,
            last=detection.last,
            figure=worse.figure,
            value=worse.value,
            rank=worse.rank,
            evidence=tuple(dict.fromkeys((*live.evidence, *detection.evidence))),
        ),
    )


def dropped(memory: Memory, point: Point, keep: int = KEEP_STEPS) -> Memory:
    """The memory after a point that did not meet the condition: a detection lives on for `keep` steps."""
    live = memory.detection
    if live is None or not _is_over(memory, live, point.last_step, keep):
        return memory
    return replace(memory, detection=None, announced=False)


def _is_over(memory: Memory, live: Detection, step: int, keep: int) -> bool:
    """Not before a verdict has shown it: with fast steps, a fault begins and ends between two verdicts."""
    return memory.announced and step - live.last > keep


def held(memory: Memory, point: Point, steps: int, is_met: bool) -> Memory:
    """Counts for how many steps the condition has been met without a break; `steps` of the point have a value."""
    if not is_met:
        return replace(memory, since=None, held=0)
    since = point.first_step if memory.since is None else memory.since
    return replace(memory, since=since, held=memory.held + steps)


def nonfinite(rule: Nonfinite, memory: Memory, look: Look) -> Memory:
    """A metric that has never been finite may be so by design. Of those only the loss is judged, after some steps: a
    tuner that has just taken over has not seen better ones."""
    point = look.point
    bad = {metric: window for metric in rule.metrics if (window := _bad_window(metric, look)) is not None}
    never = [metric for metric in bad if metric not in look.finite]
    memory = held(memory, point, point.steps, bool(never))
    metric = next((name for name in bad if name not in never or (name == LOSS and memory.held >= KEEP_STEPS)), None)
    if metric is None:
        return replace(dropped(memory, point), progress=Progress(lacks="never finite" if never else None))
    window = bad[metric]
    first = point.first_step if window.first_bad is None else window.first_bad
    suspect = max(point.first_step, min(point.last_step, first))
    detection = Detection(
        metric=metric,
        suspect=suspect if memory.since is None else memory.since,
        since=suspect,
        last=point.last_step,
        figure=usable(window.nonfinite),
        limit=0.0,
        rank=window.worst_rank,
    )
    return replace(found(memory, point, detection), progress=Progress())


def _bad_window(metric: str, look: Look) -> Window | None:
    """The window, if it has values that are not finite and should be. A scaler skips steps whose gradients are not."""
    window = look.point.metrics.get(metric)
    if window is None or window.nonfinite <= 0 or metric in look.nan_by_design:
        return None
    return None if metric == GRAD_NORM and LOSS_SCALE in look.finite else window


def spike(rule: Spike, memory: Memory, look: Look) -> Memory:
    point, compared = look.point, look.compared(rule.metric)
    if compared is None:
        return _not_compared(rule.metric, memory, look)
    entry, normal = compared
    limit = normal.value_at(rule.z, entry.steps)
    high = steps_above(entry, max(limit, normal.raised(rule.rise)))
    far = entry.steps if entry.mean > max(limit, normal.raised(rule.alone_rise)) else 0
    memory = replace(memory, hits=(*memory.hits, (entry.first, entry.steps, high, far))[-rule.alone_of :])
    near, wide = _newest(memory.hits, rule.of), _newest(memory.hits, rule.alone_of, _LEAST_RECENT)
    count = sum(item[2] for item in near)
    first = min((item[0] for item in near if item[2]), default=point.first_step)
    evidence = _evidence(look, first, point.last_step, rule.gradient_within)
    is_alone = _lasts(wide, rule.alone_hits, rule.alone_of)
    if is_alone:
        first = min(item[0] for item in wide if item[3])
    progress = Progress(have=count, need=rule.hits, lacks="hits" if 0 < count < rule.hits else None)
    if not is_alone and (count < rule.hits or not evidence):
        if count >= rule.hits:
            progress = replace(progress, lacks="evidence")
        return replace(dropped(memory, point), progress=progress)
    detection = Detection(
        metric=rule.metric,
        suspect=first,
        since=point.first_step,
        last=point.last_step,
        figure=normal.z(entry.mean, entry.steps),
        limit=rule.z,
        value=entry.mean,
        normal=normal.median,
        rank=_rank(point, rule.metric),
        evidence=evidence,
    )
    return found(replace(memory, progress=progress), point, detection)


def too_easy(rule: TooEasy, memory: Memory, look: Look) -> Memory:
    point, compared = look.point, look.compared(rule.metric)
    if compared is None:
        return _not_compared(rule.metric, memory, look)
    entry, normal = compared
    z = normal.z(entry.mean, entry.steps)
    low = entry.steps if z < -rule.z and normal.rise(entry.mean) < -rule.fall else 0
    memory = replace(memory, hits=(*memory.hits, (entry.first, entry.steps, low, low))[-rule.of :])
    window = _newest(memory.hits, rule.of)
    count = sum(item[2] for item in window)
    progress = Progress(have=count, need=rule.hits, lacks="hits" if 0 < count < rule.hits else None)
    memory = replace(memory, progress=progress)
    if count < rule.hits:
        return dropped(memory, point)
    detection = Detection(
        metric=rule.metric,
        suspect=min(item[0] for item in window if item[2]),
        since=point.first_step,
        last=point.last_step,
        figure=abs(z),
        limit=rule.z,
        value=entry.mean,
        normal=normal.median,
        rank=_rank(point, rule.metric),
    )
    return found(memory, point, detection)


def _newest(hits: Hits, of: int, least: int = 1) -> Hits:
    """The newest points that cover `of` steps, and `least` of them; all if there are not so many."""
    steps = 0
    for number, item in enumerate(reversed(hits), start=1):
        steps += item[1]
        if steps >= of and number >= least:
            return hits[-number:]
    return hits


def _lasts(hits: Hits, need: int, of: int) -> bool:
    """Whether `need` of `of` steps met the stricter condition, over several points: one tells nothing of what lasts."""
    steps = sum(item[1] for item in hits)
    return steps >= of and len(hits) >= _LEAST_RECENT and sum(item[3] for item in hits) * of >= need * steps


def slow(rule: Level, memory: Memory, look: Look) -> Memory:
    """The level of the newest steps against the level before them."""
    point = look.point
    entries = recent(look.series.get(rule.metric, ()), rule.recent, _LEAST_RECENT)
    if not entries or entries[-1].last != point.last_step:
        return dropped(memory, point)
    now = level(entries)
    normal = reference(look.series[rule.metric], now, entries[0].first, rule.span)
    if normal is None:
        return replace(dropped(held(memory, point, 0, False), point), progress=Progress(lacks="reference"))
    usual = sum(entry.steps for entry in entries) / len(entries)
    errors = normal.difference(now) / normal.error_of_median(len(entries), usual)
    is_met = errors > rule.errors and normal.rise(now) > rule.rise
    start = memory.best_step
    if memory.since is None or start is None:
        start = _began(entries, (normal.median + now) / 2)
    memory = replace(held(memory, point, entries[-1].steps, is_met), best_step=start)
    if not is_met or memory.since is None:
        return replace(dropped(memory, point), progress=Progress())
    evidence = _evidence(look, start, memory.since, rule.gradient_within)
    need = (rule.for_steps + 1) // 2 if "gradient" in evidence else rule.for_steps
    if memory.held < need or not evidence:
        progress = Progress(have=memory.held, need=need, lacks="steps" if memory.held < need else "evidence")
        return replace(dropped(memory, point), progress=progress)
    detection = Detection(
        metric=rule.metric,
        suspect=start,
        since=memory.since,
        last=point.last_step,
        figure=errors,
        limit=rule.errors,
        value=now,
        normal=normal.median,
        rank=_rank(point, rule.metric),
        evidence=evidence,
    )
    return replace(found(memory, point, detection), progress=Progress(have=memory.held, need=need))


def _began(entries: Series, middle: float) -> int:
    """The first step of the rise: from there on, three of four values are above the middle between before and now."""
    for number, entry in enumerate(entries):
        rest = entries[number:]
        if entry.mean > middle and 4 * sum(item.mean > middle for item in rest) >= 3 * len(rest):
            return entry.first
    return entries[0].first


def _evidence(look: Look, start: int, since: int, gradient_within: int) -> tuple[Evidence, ...]:
    """What corroborates a rise that began at `start` and was seen at `since`."""
    evidence: list[Evidence] = []
    if any(start - gradient_within <= step <= since for step in look.gradients):
        evidence.append("gradient")
    if any(start - look.change_within_steps <= change.step <= since for change in look.changes):
        evidence.append("change")
    if look.is_too_easy:
        evidence.append("too easy")
    return tuple(evidence)


def grad(rule: Grad, memory: Memory, look: Look) -> Memory:
    """Remembers the steps of the newest gradient spikes in `hits`, and whether they may explain a rise."""
    point, compared = look.point, look.compared(rule.metric)
    if compared is None:
        return _not_compared(rule.metric, memory, look)
    entry, normal = compared
    memory = replace(memory, progress=Progress())
    z = normal.z(entry.max)
    if z <= rule.z:
        return dropped(memory, point)
    detection = Detection(
        metric=rule.metric,
        suspect=entry.first,
        since=entry.first,
        last=entry.last,
        figure=z,
        limit=rule.z,
        value=entry.max,
        normal=normal.median,
        rank=_rank(point, rule.metric),
    )
    loss, usual = look.entry(LOSS), look.normals.get(LOSS)
    is_calm = loss is None or usual is None or usual.z(loss.mean, loss.steps) <= _CALM_Z
    is_rare = sum(item[0] >= entry.first - _FEW_WITHIN for item in memory.hits) < _FEW
    hits = (*memory.hits, (entry.first, entry.steps, 1, int(is_calm and is_rare)))[-_HITS_KEPT:]
    return found(replace(memory, hits=hits), point, detection)


def loss_scale(rule: LossScale, memory: Memory, look: Look) -> Memory:
    """Remembers the largest scale of the newest `span` steps in `best`. A run that calibrates its scale at the start is
    left alone: nothing is judged within the first `2 * span` steps."""
    point, window = look.point, look.point.metrics.get(rule.metric)
    now = usable(window.last if window is not None else None)
    if now is None or now <= 0:
        return dropped(memory, point)
    memory, best, best_step = held(memory, point, point.steps, True), memory.best, memory.best_step
    if best is None or best_step is None or now >= best or point.last_step - best_step > rule.span:
        best, best_step = now, point.last_step
    memory = replace(memory, best=best, best_step=best_step)
    fell = best / now
    if memory.held <= 2 * rule.span or fell <= 1 or (now > rule.minimum and fell < 2.0**rule.halvings):
        return dropped(memory, point)
    detection = Detection(
        metric=rule.metric,
        suspect=best_step + 1,
        since=point.first_step,
        last=point.last_step,
        figure=fell,
        limit=2.0**rule.halvings,
        value=now,
        normal=best,
    )
    return found(memory, point, detection)


def plateau(rule: Plateau, memory: Memory, look: Look) -> Memory:
    """Remembers the lowest level, and when it was reached."""
    point = look.point
    entries = recent(look.series.get(rule.metric, ()), rule.recent, _LEAST_RECENT)
    if not entries or entries[-1].last != point.last_step:
        return dropped(memory, point)
    now, best = level(entries), memory.best
    if best is None or memory.best_step is None or now < best - rule.fall * abs(best):
        return replace(
            memory, best=now, best_step=point.last_step, detection=None, announced=False, progress=Progress()
        )
    flat = point.last_step - memory.best_step
    if flat < rule.for_steps:
        return memory
    detection = Detection(
        metric=rule.metric,
        suspect=memory.best_step + 1,
        since=memory.best_step + rule.for_steps,
        last=point.last_step,
        figure=float(flat),
        limit=float(rule.for_steps),
        value=now,
        normal=best,
    )
    return found(memory, point, detection)


def _rank(point: Point, metric: str) -> int | None:
    window = point.metrics.get(metric)
    return window.worst_rank if window is not None else None


def _excess(detection: Detection) -> float:
    return abs((detection.figure or 0.0) - (detection.limit or 0.0))


def needs_series(rule: Rule) -> bool:
    """Whether the rule compares with what its metric was before."""
    return isinstance(rule, Spike | Level | TooEasy | Grad | Plateau)
