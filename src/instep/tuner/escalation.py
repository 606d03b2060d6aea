"""Which action a rule that fires asks for: take back, recover, recover further, pause for a person. Pure.

Each action at the same place goes one step further than the one before. No checkpoint is restored twice for one place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from instep.tuner import texts
from instep.tuner.brakes import counts, left
from instep.tuner.detectors import KEEP_STEPS
from instep.tuner.recovery import (
    Cause,
    Changes,
    cause_of,
    checkpoint_for,
    is_lower,
    lower_lr,
    out_of_bounds,
    skip_of,
)
from instep.tuner.rules import Grad, Level, Nonfinite, Rule, Spike, TooEasy, Wish
from instep.tuner.sample import ActionKind, Sample
from instep.tuner.state import LedgerEntry, State
from instep.tuner.verdict import Action, Brake, Detection

GRADIENT_WITHIN: Final = 50
"""A gradient spike so many steps before the first suspect step belongs to it."""
RECOVERIES: Final = 2
"""Recoveries at one place; after them only a person can tell."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is ill: what was found, and what has been done about it already."""

    suspect: int
    cause: Cause | None
    related: tuple[LedgerEntry, ...]

    def count(self, kind: ActionKind) -> int:
        return sum(entry.kind == kind for entry in self.related)


def wanted(state: State, sample: Sample, name: str, detection: Detection) -> tuple[Action | None, tuple[Brake, ...]]:
    """The action that the rule asks for now, and what of it speaks against it; no action for an alert."""
    rule = state.rules.rules[name]
    wish = _wish_of(rule, detection)
    if wish == "alert":
        return None, ()
    place = place_of(state, sample, rule, detection)
    if place.count("pause") or any(entry.outcome == "rejected" for entry in place.related):
        return None, (Brake("waits for a person", place.related[-1].id),)
    draft = Action(
        id=f"{max(state.step, 0)}-{state.actions + 1}",
        kind="pause",
        rule=name,
        step=state.step,
        suspect=place.suspect,
        reason="",
        ask=rule.ask,
    )
    action, why = _chosen(state, sample, wish, place, draft)
    if action is None:
        return None, () if why is None else (why,)
    if left(state) == 1 and action.kind != "pause":
        action, why = draft, Brake("last action")
    return replace(action, reason=texts.reason(action, rule.kind, detection, why)), ()


def _wish_of(rule: Rule, detection: Detection) -> Wish:
    """What the rule asks for first. A loss that rose far has damaged the weights, and no taking back repairs them."""
    wish: Wish = getattr(rule, "action", "alert")
    if not isinstance(rule, Level) or wish != "take_back":
        return wish
    value, normal = detection.value, detection.normal
    is_damaged = value is not None and normal is not None and value - normal > rule.damage * abs(normal)
    return "recover" if is_damaged else wish


def place_of(state: State, sample: Sample, rule: Rule, detection: Detection) -> Place:
    """The first suspect step over all rules that fire, the change that came just before, and the related actions."""
    suspect = detection.suspect
    if isinstance(rule, Nonfinite | Spike | Level):
        suspect = min(suspect, _earliest(state, suspect))
    cause = cause_of(state, sample, suspect, detection.since)
    if cause is not None:
        suspect = min(suspect, cause.step)
    incident = state.rules.brakes.incident_steps
    related = tuple(
        entry
        for entry in state.ledger
        if counts(state, entry) and _begins(entry, incident) <= suspect <= entry.step + incident
    )
    return Place(suspect, cause, related)


def _earliest(state: State, suspect: int) -> int:
    """The first suspect step of all rules that watch the same run, gradient spikes shortly before included."""
    found = [suspect]
    for name, rule in state.rules.enabled:
        memory = state.memories.get(name)
        if memory is None:
            continue
        live = memory.detection
        if isinstance(rule, Grad):
            found += [item[0] for item in memory.hits if item[3] and suspect - GRADIENT_WITHIN <= item[0] < suspect]
        elif isinstance(rule, Nonfinite | Spike | Level | TooEasy) and live is not None:
            found += [live.suspect] if live.last >= suspect - KEEP_STEPS else []
    return min(found)


def _begins(entry: LedgerEntry, incident: int) -> int:
    return entry.checkpoint_step if entry.checkpoint_step is not None else entry.suspect - incident


def _chosen(
    state: State, sample: Sample, wish: Wish, place: Place, draft: Action
) -> tuple[Action | None, Brake | None]:
    """The action, and why it is not a milder one; or no action, and why."""
    recoveries = place.count("recover")
    if wish == "cut_lr":
        return _cut(state, sample, place, draft)
    if wish == "pause" or recoveries >= RECOVERIES:
        return draft, None
    if wish == "take_back" and place.cause is not None and not place.related:
        return _take_back(state, sample, place.cause, draft)
    return _recover(state, sample, place, draft, further=recoveries > 0)


def _cut(state: State, sample: Sample, place: Place, draft: Action) -> tuple[Action | None, Brake | None]:
    """A cut stands outside of the escalation: it is judged, and reverted if it did not help."""
    if place.related:
        return None, Brake("waits for a person", place.related[-1].id)
    changes = lower_lr(state, sample, {})
    if not changes:
        return None, Brake("nothing to set", "no learning rate above its floor", ", ".join(state.rules.brakes.lr))
    bound = _bound(state, sample, changes)
    return (None, bound) if bound else (replace(draft, kind="cut_lr", changes=changes), None)


def _take_back(state: State, sample: Sample, cause: Cause, draft: Action) -> tuple[Action | None, Brake | None]:
    bound = _bound(state, sample, cause.changes)
    if bound is not None:
        return draft, bound
    return replace(draft, kind="take_back", changes=cause.changes, takes_back=cause.plans), None


def _recover(
    state: State, sample: Sample, place: Place, draft: Action, *, further: bool
) -> tuple[Action | None, Brake | None]:
    """A recovery, or what takes its place, with the reason: without a checkpoint, a change is taken back at least."""
    brakes, cause = state.rules.brakes, place.cause
    checkpoint = checkpoint_for(state, sample, place.suspect, place.related)
    if checkpoint is None:
        if cause is not None and not place.related:
            return _take_back(state, sample, cause, draft)
        return draft, Brake("no checkpoint", len(sample.checkpoints), f"before step {place.suspect}")
    rewind = state.step - checkpoint.step
    if rewind > brakes.max_rewind_steps:
        return draft, Brake("too far back", rewind, brakes.max_rewind_steps)
    skip = skip_of(state, sample, checkpoint)
    if skip is None and cause is None:
        return draft, Brake("no data offset")
    changes: Changes = cause.changes if cause is not None else {}
    if further:
        changes = {**changes, **lower_lr(state, sample, changes)}
    bound = _bound(state, sample, changes)
    if bound is not None:
        return draft, bound
    if skip is not None:
        most = sample.parameters[skip.offset].maximum
        if skip.by > brakes.max_skip:
            return draft, Brake("bounds", skip.by, f"{brakes.max_skip} batches")
        if most is not None and skip.to - checkpoint.step - 1 > most:
            return draft, Brake("bounds", skip.to - checkpoint.step - 1, f"{most:g} for {skip.offset}")
    action = replace(
        draft,
        kind="recover",
        changes=changes,
        takes_back=cause.plans if cause is not None else (),
        checkpoint=checkpoint.id,
        checkpoint_step=checkpoint.step,
    )
    if skip is not None:
        action = replace(action, offset=skip.offset, raise_offset=skip.by, skipped_to=skip.to)
    return action, None


def _bound(state: State, sample: Sample, changes: Changes) -> Brake | None:
    """The first value that may not be set."""
    for name, (now, value) in changes.items():
        limit = out_of_bounds(state, sample.parameters, name, value)
        if limit is not None:
            return Brake("bounds", f"{name} {value}", f"{limit:g}")
        if name in state.rules.brakes.lr and is_lower(now, value):
            return Brake("bounds", f"{name} {value}", f"{now}: it is never raised")
    return None


def revert_of(state: State, sample: Sample, entry: LedgerEntry) -> Action | None:
    """Sets back a cut of the learning rate that did not help; None if a person has changed it since."""
    agreed = {name: item.value for name, item in sample.parameters.items() if not item.fixed}
    back = {name: (new, old) for name, (old, new) in entry.changes.items() if agreed.get(name) == new}
    if not back or len(back) < len(entry.changes):
        return None
    if any(out_of_bounds(state, sample.parameters, name, old) is not None for name, (_, old) in back.items()):
        return None
    action = Action(
        id=f"{max(state.step, 0)}-{state.actions + 1}",
        kind="revert",
        rule=entry.rule,
        step=state.step,
        suspect=entry.suspect,
        reason="",
        changes=back,
    )
    return replace(action, reason=texts.reason_of_revert(action, entry.id))
