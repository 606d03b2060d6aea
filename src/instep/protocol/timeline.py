"""Which values were in effect at which step, from the starts of views and the committed plans. Pure.

A segment begins with a fresh start and ends before the next one. A run that resumed from a checkpoint ran some steps
again. Its schedule contains the steps that led to the result: what came after the checkpoint is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from instep.errors import ConfigError
from instep.protocol.records import Decision, FirstStep, Manifest, Origin, Plan, StartOfView, View
from instep.protocol.resuming import step_of
from instep.scalar import Scalar, same
from instep.schedule import Schedule, ScheduledChange

Values: TypeAlias = Mapping[str, Scalar]

Position: TypeAlias = tuple[int, int]
"""The order of changes: plan `n` is `(n, 0)`, and the start of view `v` after plan `n` is `(n, v)`."""

_ENDLESS = 2**62


@dataclass(frozen=True, slots=True)
class Segment:
    """A fresh start and the committed plans after it, in order. `whole` is False if some plans are deleted."""

    start: StartOfView
    plans: tuple[Plan, ...] = ()
    first_step: int | None = None
    """None if no step is known to have run."""
    origin: Origin | None = None
    """The checkpoint that it resumed from, if known; else it continues the segment before."""
    whole: bool = True

    @property
    def position(self) -> Position:
        """The position of its start."""
        return self.start.plan, self.start.view

    def values(self, before: int | None = None) -> dict[str, Scalar]:
        """The values at its end, or before plan `before`."""
        held = dict(self.start.values)
        for plan in self.plans:
            if before is None or plan.number < before:
                held |= plan.values
        return held


@dataclass(frozen=True, slots=True)
class Span:
    """The values in effect from `step` on; None if they are unknown."""

    step: int
    values: Values | None
    author: str | None = None
    reason: str | None = None


Spans: TypeAlias = tuple[Span, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The history of a run as etcd keeps it: `plans` and `decisions` by number, `starts` and `first_steps` by view."""

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
        """The position of the newest committed plan, or start, that changed values."""
        changes = [(number, 0) for number, plan in self.plans.items() if plan.kind == "config"]
        found = [position for position in changes if self.is_committed(position[0])]
        found += [segment.position for segment in self.segments() if segment.start.changes]
        return max(found, default=None)

    def segments(self) -> tuple[Segment, ...]:
        """The segments whose start is kept, the oldest first."""
        starts = self._starts()
        return tuple(map(self._segment, starts, [*starts[1:], None]))

    def values_before(self, number: int) -> dict[str, Scalar]:
        """The values when plan `number` was opened. Raises ConfigError if they are not kept any more."""
        return self._segment_of(number).values(before=number)

    def values_after(self, number: int) -> dict[str, Scalar]:
        """The values after plan `number` was committed. Raises ConfigError if they are not kept any more."""
        return self._segment_of(number).values(before=number + 1)

    def start(self, view: int) -> StartOfView:
        """The start of fresh view `view`. Raises ConfigError if it is not kept, or the view was not fresh."""
        found = next((segment.start for segment in self.segments() if segment.start.view == view), None)
        if found is None:
            raise ConfigError(f"no start of view {view} is kept: 'instep history' names those that changed values")
        return found

    def changed_since(self, since: Position) -> tuple[str, ...]:
        """Names that a plan or start at `since` or later changed."""
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
        """The schedule that the run was trained with, up to now. Raises ConfigError if it is not known."""
        segments = self.segments()
        whole = segments[0].start.view == 1 if segments else not self.plans
        spans: Spans = () if whole else (Span(0, None, reason="it is no longer kept"),)
        passed: list[tuple[int, int, Spans]] = []
        """View, plan and spans at that moment: a checkpoint names view and plan."""
        for segment in segments:
            if segment.first_step is not None:
                spans = self._through(segment, spans, passed)
        if not any(segment.first_step is not None for segment in segments) and segments:
            spans = (Span(0, segments[-1].start.values),)
        return _schedule(run, spans)

    # -- segments ---------------------------------------------------------------------------------------------------

    def _starts(self) -> list[StartOfView]:
        view, starts = self.view, dict(self.starts)
        if view is not None and view.fresh and view.number not in starts:
            start = view.start
            starts[view.number] = StartOfView(
                view=view.number, values=start.values, plan=start.plan, checkpoint=start.checkpoint
            )
        # Higher ones are from before the run's state was deleted by hand.
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
        return step_of(start.checkpoint) + 1 if start.checkpoint else 0

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
        raise ConfigError(f"the values at plan {number} are no longer kept")

    # -- spans ------------------------------------------------------------------------------------------------------

    def _through(self, segment: Segment, spans: Spans, passed: list[tuple[int, int, Spans]]) -> Spans:
        assert segment.first_step is not None
        start, origin = segment.start, segment.origin
        held: dict[str, Scalar] = dict(start.values)
        spans = _back_to(segment.first_step, _as_of(origin, passed, spans))
        if start.replays is not None or not segment.whole:
            kept = "it replayed a schedule" if start.replays else "some of its plans are no longer kept"
            return (*spans, Span(segment.first_step, None, reason=kept))
        why = f"resumed from checkpoint {origin.id}" if origin else f"start of view {start.view}"
        reasons = _joined(change.reason for change in start.changes)
        why = f"{reasons} ({why})" if reasons else why
        author = _joined(change.author for change in start.changes)
        spans = (*spans, Span(segment.first_step, dict(held), author, why))
        passed.append((start.view, start.plan, spans))
        for plan in segment.plans:
            held |= plan.values
            if plan.kind == "config":
                # In a run that is paused from its start on, the gate may be below the step before which all ranks wait.
                step = max(plan.gate, segment.first_step)
                spans = (*_back_to(step, spans), Span(step, dict(held), plan.author, plan.reason))
            elif plan.checkpoint is not None:
                step = plan.checkpoint.step + 1
                why = f"returned to checkpoint {plan.checkpoint.id}"
                spans = _back_to(step, _as_of(plan.checkpoint, passed, spans))
                spans = (*spans, Span(step, dict(held), plan.author, why))
            passed.append((start.view, plan.number, spans))
        return spans


def _as_of(origin: Origin | Manifest | None, passed: list[tuple[int, int, Spans]], spans: Spans) -> Spans:
    """The spans that led to a checkpoint, even if the run has left them since."""
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
        raise ConfigError(f"the values of run {run} from step {hole.step} on are not known: {hole.reason}")
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
    """Names in `after` that are new or have another value than in `before`."""
    return tuple(name for name, value in after.items() if name not in before or not same(before[name], value))


def _joined(texts: Iterable[str | None]) -> str | None:
    """The texts, each once, joined."""
    return "; ".join(dict.fromkeys(text for text in texts if text)) or None
