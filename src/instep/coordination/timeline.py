"""Which values held when: starts of views and committed plans, put in order. Pure.

A lap is what followed one fresh start, until the next. A run that went on from a checkpoint ran some steps again, and
what it was trained with in the end is the way that leads there: whatever came after the checkpoint is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from instep.coordination.records import Decision, FirstStep, Manifest, Origin, Plan, StartOfView, View
from instep.errors import ConfigError
from instep.scalar import Scalar, same
from instep.schedule import Schedule, ScheduledChange

Values: TypeAlias = Mapping[str, Scalar]

Position: TypeAlias = tuple[int, int]
"""The order of changes: plan `n` is `(n, 0)`, the start of view `v` after plan `n` is `(n, v)`."""

_ENDLESS = 2**62


@dataclass(frozen=True, slots=True)
class Segment:
    """A fresh start and the committed plans that followed, in order. `whole` is False when some are not kept."""

    start: StartOfView
    plans: tuple[Plan, ...] = ()
    first_step: int | None = None
    """None when no step is known to have been run."""
    origin: Origin | None = None
    """The checkpoint that it went on from, if that is known: else from what was before."""
    whole: bool = True

    @property
    def position(self) -> Position:
        """Of its start."""
        return self.start.plan, self.start.view

    def values(self, before: int | None = None) -> dict[str, Scalar]:
        """What held in the end, or before plan `before`."""
        held = dict(self.start.values)
        for plan in self.plans:
            if before is None or plan.number < before:
                held |= plan.values
        return held


@dataclass(frozen=True, slots=True)
class Span:
    """From `step` on these values held; None when it is not known which."""

    step: int
    values: Values | None
    author: str | None = None
    reason: str | None = None


Spans: TypeAlias = tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What etcd keeps of a run's history. `plans` and `decisions` by number, `starts` and `first_steps` by view."""

    starts: Mapping[int, StartOfView] = field(default_factory=dict)
    first_steps: Mapping[int, FirstStep] = field(default_factory=dict)
    plans: Mapping[int, Plan] = field(default_factory=dict)
    decisions: Mapping[int, Decision] = field(default_factory=dict)
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    view: View | None = None

    def is_committed(self, number: int) -> bool:
        decision = self.decisions.get(number)
        return decision is not None and decision.commit

    def newest_change(self) -> Position | None:
        """The newest committed plan that changed values, or the newest start that did."""
        changes = [(number, 0) for number, plan in self.plans.items() if plan.kind == "config"]
        found = [position for position in changes if self.is_committed(position[0])]
        found += [segment.position for segment in self.segments() if segment.start.changes]
        return max(found, default=None)

    def segments(self) -> tuple[Segment, ...]:
        """Those whose start is kept, the oldest first."""
        starts = self._starts()
        return tuple(map(self._segment, starts, [*starts[1:], None]))

    def values_before(self, number: int) -> dict[str, Scalar]:
        """What held when plan `number` was made. Raises ConfigError when that is not kept any more."""
        return self._segment_of(number).values(before=number)

    def values_after(self, number: int) -> dict[str, Scalar]:
        """What held when plan `number` was committed. Raises ConfigError when that is not kept any more."""
        return self._segment_of(number).values(before=number + 1)

    def start(self, view: int) -> StartOfView:
        """What fresh view `view` began with. Raises ConfigError when it is not kept, or the view was not fresh."""
        found = next((segment.start for segment in self.segments() if segment.start.view == view), None)
        if found is None:
            raise ConfigError(f"no start of view {view} is kept: 'instep history' names those that changed values")
        return found

    def changed_since(self, since: Position) -> tuple[str, ...]:
        """Names that the plan or start at `since`, or a later plan or start of the run, changed."""
        names: dict[str, None] = {}
        held: dict[str, Scalar] | None = None
        for segment in self.segments():
            later = segment.position >= since
            if held is not None:
                names |= dict.fromkeys(name for name in _differing(held, segment.start.values) if name in held)
            if later:
                names |= dict.fromkeys(name for change in segment.start.changes for name in change.names)
            changes = [plan for plan in segment.plans if (plan.number, 0) >= since]
            names |= dict.fromkeys(name for plan in changes for name in plan.values)
            if later or changes or held is not None:
                held = segment.values()
        return tuple(names)

    def schedule(self, run: str) -> Schedule:
        """What the run was trained with, as far as it has come. Raises ConfigError when that cannot be told."""
        segments = self.segments()
        whole = segments[0].start.view == 1 if segments else not self.plans
        spans: Spans = () if whole else (Span(0, None, reason="it is not kept any more"),)
        passed: list[tuple[int, int, Spans]] = []
        """Views, plans, and the way as it was then: a checkpoint names both."""
        for segment in segments:
            if segment.first_step is not None:
                spans = self._through(segment, spans, passed)
        if not any(segment.first_step is not None for segment in segments) and segments:
            spans = (Span(0, segments[-1].start.values),)
        return _schedule(run, spans)

    # -- laps -------------------------------------------------------------------------------------------------------

    def _starts(self) -> list[StartOfView]:
        view, starts = self.view, dict(self.starts)
        if view is not None and view.fresh and view.number not in starts:
            start = view.start
            starts[view.number] = StartOfView(
                view=view.number, values=start.values, plan=start.plan, checkpoint=start.checkpoint
            )
        # Higher ones are from a former life of the run, whose state was deleted by hand.
        return [starts[number] for number in sorted(starts) if view is None or number <= view.number]

    def _segment(self, start: StartOfView, following: StartOfView | None) -> Segment:
        last = following.plan if following is not None else max(self.plans, default=start.plan)
        numbers = range(start.plan + 1, last + 1)
        ended = following.view if following is not None else _ENDLESS
        committed = tuple(
            self.plans[number]
            for number in numbers
            if self.is_committed(number) and number in self.plans and start.view <= self.plans[number].view < ended
        )
        whole = all(number in self.plans for number in numbers)
        first_step = self._first_step(start, ended, ran=bool(committed))
        return Segment(start, committed, first_step, self._origin(start, first_step), whole)

    def _first_step(self, start: StartOfView, ended: int, *, ran: bool) -> int | None:
        said = self.first_steps.get(start.view)
        if said is not None:
            return said.step
        saved = any(start.view <= manifest.view < ended for manifest in self.manifests.values())
        if not ran and not saved:
            return None
        return _step_of(start.checkpoint) + 1 if start.checkpoint else 0

    def _origin(self, start: StartOfView, first_step: int | None) -> Origin | None:
        said = self.first_steps.get(start.view)
        origin = said.origin if said is not None else None
        manifest = self.manifests.get(start.checkpoint or "")
        if origin is None and manifest is not None:
            origin = Origin(id=manifest.id, step=manifest.step, view=manifest.view, plan=manifest.plan)
        return origin if origin is not None and origin.step + 1 == first_step else None

    def _segment_of(self, number: int) -> Segment:
        for segment in self.segments():
            if any(plan.number == number for plan in segment.plans) and segment.whole:
                return segment
        raise ConfigError(f"which values held at plan {number} is not kept any more")

    # -- the way ----------------------------------------------------------------------------------------------------

    def _through(self, segment: Segment, spans: Spans, passed: list[tuple[int, int, Spans]]) -> Spans:
        assert segment.first_step is not None
        start, origin = segment.start, segment.origin
        held: dict[str, Scalar] = dict(start.values)
        spans = _back_to(segment.first_step, _as_of(origin, passed, spans))
        if start.replays is not None or not segment.whole:
            kept = "it replayed a schedule, which tells it" if start.replays else "its plans are not all kept any more"
            return (*spans, Span(segment.first_step, None, reason=kept))
        why = f"went on from checkpoint {origin.id}" if origin else f"start of view {start.view}"
        reasons = _joined(change.reason for change in start.changes)
        why = f"{reasons} ({why})" if reasons else why
        author = _joined(change.author for change in start.changes)
        spans = (*spans, Span(segment.first_step, dict(held), author, why))
        passed.append((start.view, start.plan, spans))
        for plan in segment.plans:
            held |= plan.values
            if plan.kind == "config":
                # While a run is paused from its start on, the gate is any step before the one that all stand at.
                step = max(plan.gate, segment.first_step)
                spans = (*_back_to(step, spans), Span(step, dict(held), plan.author, plan.reason))
            elif plan.checkpoint is not None:
                step = plan.checkpoint.step + 1
                why = f"taken back to checkpoint {plan.checkpoint.id}"
                spans = _back_to(step, _as_of(plan.checkpoint, passed, spans))
                spans = (*spans, Span(step, dict(held), plan.author, why))
            passed.append((start.view, plan.number, spans))
        return spans


def _as_of(origin: Origin | Manifest | None, passed: list[tuple[int, int, Spans]], spans: Spans) -> Spans:
    """The way that led to a checkpoint: it may have been left since, and is taken up again now."""
    if origin is None:
        return spans
    views = [view for view, _, _ in passed if view <= origin.view]
    known = [one for view, plan, one in passed if view == max(views, default=0) and plan <= origin.plan]
    return known[-1] if known else spans


def _back_to(step: int, spans: Spans) -> Spans:
    return tuple(span for span in spans if span.step < step)


def _schedule(run: str, spans: Spans) -> Schedule:
    hole = next((span for span in spans if span.values is None), None)
    if hole is not None:
        raise ConfigError(f"what run {run} was trained with from step {hole.step} on cannot be told: {hole.reason}")
    if not spans:
        raise ConfigError(f"run {run} has not started yet: there is no schedule")
    first, *later = spans
    assert first.values is not None
    changes, held = [], dict(first.values)
    for span in later:
        assert span.values is not None
        news = {name: value for name, value in span.values.items() if name in _differing(held, span.values)}
        if news:
            changes.append(ScheduledChange(span.step, news, span.author, span.reason))
            held |= news
    return Schedule(run, first.values, tuple(changes))


def _differing(before: Values, after: Values) -> tuple[str, ...]:
    """Names of `after` that `before` does not have with the same value."""
    return tuple(name for name, value in after.items() if name not in before or not same(before[name], value))


def _joined(texts: Iterable[str | None]) -> str | None:
    """Those that are there, each once."""
    return "; ".join(dict.fromkeys(text for text in texts if text)) or None


def _step_of(checkpoint_id: str) -> int:
    step = checkpoint_id.partition("-")[0]
    return int(step) if step.isdecimal() else -1
