"""The values at earlier moments of a run: comparing, restoring, and exporting them as a schedule."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from instep.control._cache import RunCache
from instep.control._change import TRIES, Written, change_by, read_for_change, write_checked
from instep.control._progress import NO_REASON
from instep.control._read import load
from instep.control._report import JsonReport
from instep.control._values import MAX_VALUES, refusal
from instep.errors import ConfigError, SettingsError
from instep.etcd import Client, Compare
from instep.protocol.desired import pending_names
from instep.protocol.keys import Keys
from instep.protocol.timeline import Position, Timeline
from instep.protocol.transactions import HISTORY_PLANS, STARTS_KEPT
from instep.scalar import Scalar, format_scalar, same
from instep.schedule import Schedule
from instep.text import one_line

START, NOW, VIEW = "start", "now", "v"
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Past:
    """A run now, and what is known of its history."""

    cache: RunCache
    timeline: Timeline

    def check_plan(self, number: int) -> None:
        """Raises ConfigError for a plan that is unknown, undecided or aborted."""
        timeline, run = self.timeline, self.cache.keys.run
        if number not in timeline.plans:
            newest = max(timeline.plans, default=0)
            if not newest:
                raise ConfigError(f"run {run} has no plan {number}: nothing has been changed yet")
            if not 1 <= number <= newest:
                raise ConfigError(f"run {run} has no plan {number}: its newest is {newest}")
            raise ConfigError(f"plan {number} of run {run} is no longer kept: etcd keeps the last {HISTORY_PLANS}")
        decision = timeline.decisions.get(number)
        if decision is None:
            raise ConfigError(f"plan {number} of run {run} is not decided yet: it has changed nothing")
        if not decision.commit:
            why = one_line(decision.reason or NO_REASON)
            raise ConfigError(f"plan {number} of run {run} was aborted ({why}): it changed nothing")


async def load_past(client: Client, keys: Keys) -> Past:
    """All of it at one revision. Raises RunNotFound."""
    cache = await load(
        client, keys, plans=HISTORY_PLANS + 1, receipts=0, members=True, checkpoints=True, starts=STARTS_KEPT
    )
    timeline = Timeline(
        starts=cache.starts,
        first_steps=cache.first_steps,
        plans=cache.plans,
        decisions=cache.decisions,
        manifests={name: saved.manifest for name, saved in cache.saved.items()},
        view=cache.view,
    )
    return Past(cache, timeline)


async def schedule(client: Client, keys: Keys) -> Schedule:
    """The values that a run was trained with so far, by step. For steps that were run again after a return to a
    checkpoint, the last time counts. Raises RunNotFound, or ConfigError when etcd no longer keeps enough.
    """
    past = await load_past(client, keys)
    return past.timeline.schedule(keys.run)


@dataclass(frozen=True, slots=True)
class Difference(JsonReport):
    """One hyperparameter. `was_set` or `is_set` is False if it had no value; `before` or `after` is then None."""

    name: str
    before: Scalar
    after: Scalar
    was_set: bool
    is_set: bool


@dataclass(frozen=True, slots=True)
class Diff(JsonReport):
    """`before` and `after` name the two moments as they were given: a plan's number, `v` and the number of a view,
    `start` or `now`."""

    run: str
    revision: int
    before: str
    after: str
    changes: tuple[Difference, ...]


def parse_moment(text: str) -> str:
    """`12` for `12` and `#12`, `v3` for the start of view 3, `start` or `now`. Raises SettingsError for other texts."""
    if text in (START, NOW):
        return text
    kind = VIEW if text.startswith(VIEW) else ""
    number = text.removeprefix(kind or "#")
    if number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS:
        return f"{kind}{int(number)}"
    shown = text if len(text) <= 40 else text[:37] + "..."
    raise SettingsError(
        f"{shown!r} names no plan: give its number, as 'instep history' shows it, v and the number of a view for the "
        "values that the view started with, start, or now"
    )


async def diff(client: Client, keys: Keys, before: str, after: str) -> Diff:
    """Where the values after plan `before` and after plan `after` differ.

    `v3` stands for the values that view 3 started with, `start` for those that the run first started with, as far as
    etcd keeps them, and `now` for those that every rank has. Raises RunNotFound, SettingsError for an invalid moment,
    and ConfigError for a plan that is unknown or was aborted, or whose values are no longer kept.
    """
    first, second = parse_moment(before), parse_moment(after)
    past = await load_past(client, keys)
    old, new = _values(past, first), _values(past, second)
    return Diff(keys.run, past.cache.revision, first, second, differences(old, new))


def differences(old: Mapping[str, Scalar], new: Mapping[str, Scalar]) -> tuple[Difference, ...]:
    return tuple(
        Difference(name, old.get(name), new.get(name), name in old, name in new)
        for name in dict.fromkeys((*old, *new))
        if not (name in old and name in new and same(old[name], new[name]))
    )


def _values(past: Past, moment: str) -> Mapping[str, Scalar]:
    cache = past.cache
    if moment == NOW:
        if cache.agreed is None:
            raise ConfigError(f"run {cache.keys.run} has not started yet: no values are agreed")
        if cache.schema.replays is not None:
            raise ConfigError(f"run {cache.keys.run} replays a schedule: its file says which values hold at a step")
        return cache.agreed.values
    if moment == START:
        segments = past.timeline.segments()
        if not segments:
            raise ConfigError(f"run {cache.keys.run} has not started yet: it has no start")
        return segments[0].start.values
    if moment.startswith(VIEW):
        return past.timeline.start(int(moment.removeprefix(VIEW))).values
    past.check_plan(int(moment))
    return past.timeline.values_after(int(moment))


@dataclass(frozen=True, slots=True)
class RolledBack(JsonReport):
    """The restored values held before `plan`; or, if that is None, before the changes with which `view` started."""

    plan: int | None
    written: Written
    view: int | None = None


async def rollback(
    client: Client,
    keys: Keys,
    moment: str | None = None,
    *,
    author: str | None = None,
    reason: str | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> RolledBack:
    """Restore the values from before a plan (`12`), in one change: every value that it or anything later changed.

    `v3` restores those from before the changes with which view 3 started. Without a moment, take back the newest
    change of values, which may be a rollback itself. Nothing is written unless the agreed values are still those that
    were read. Raises RunNotFound, EtcdUnavailable like `set_values`, SettingsError for any other moment, and
    ConfigError when there is nothing to take back, for a plan that is unknown, was aborted or is no longer kept, and
    for values that the run does not accept now.
    """
    asked_at_s = monotonic()
    moment = parse_moment(moment) if moment is not None else None
    if moment in (START, NOW):
        raise SettingsError(f"{moment!r} names no plan: give a number, as 'instep history' shows it")
    change_by(author, reason)
    for _ in range(TRIES):
        past = await load_past(client, keys)
        position = _position(past, moment)
        values = values_to_restore(past, position)
        before = await read_for_change(client, keys)
        why = f"rollback of {_named(position)}" + (f": {reason}" if reason else "")
        # If another change is agreed on in the meantime, a different one would have to be taken back.
        guard = Compare.mod_revision(keys.agreed, "<", past.cache.revision + 1)
        texts = {name: format_scalar(value) for name, value in values.items()}
        written = await write_checked(client, before, texts, change_by(author, why), asked_at_s, (guard,))
        if written is not None:
            plan, view = position
            return RolledBack(None, written, view) if view else RolledBack(plan, written)
    raise ConfigError(
        f"nothing was written: the values of {keys.run} changed {TRIES} times while they were read; try again"
    )


def _position(past: Past, moment: str | None) -> Position:
    """Raises ConfigError."""
    if moment is not None and moment.startswith(VIEW):
        view = int(moment.removeprefix(VIEW))
        return past.timeline.start(view).plan, view
    if moment is not None:
        return int(moment), 0
    newest = past.timeline.newest_change()
    if newest is None:
        raise ConfigError(f"nothing to roll back: no change of run {past.cache.keys.run} is known")
    return newest


def _named(position: Position) -> str:
    plan, view = position
    return f"the start of view {view}" if view else f"plan {plan}"


def values_to_restore(past: Past, position: Position) -> dict[str, Scalar]:
    """What has to be written to restore the values from before that plan or start. Pure. Raises ConfigError."""
    run, timeline = past.cache.keys.run, past.timeline
    number, view = position
    if view:
        start = timeline.start(view)
        if not start.changes:
            raise ConfigError(f"the start of view {view} of run {run} changed no value: there is none to take back")
        target = start.before
    else:
        past.check_plan(number)
        kind = timeline.plans[number].kind
        if kind != "config":
            raise ConfigError(
                f"plan {number} of run {run} is a {kind}: it changed no value, so there is none to take back"
            )
        target = timeline.values_before(number)
    what, waiting = _named(position), _waiting(past)
    agreed = past.cache.agreed.values if past.cache.agreed else {}
    names = dict.fromkeys((*timeline.changed_since(position), *waiting))
    unset = f"it had no value before {what}, and a value cannot be removed"
    problems = {name: unset for name in names if name not in target}
    if problems:
        raise ConfigError(refusal(problems), problems=problems)
    values = {
        name: target[name]
        for name in names
        if name in waiting or not (name in agreed and same(agreed[name], target[name]))
    }
    if len(values) > MAX_VALUES:
        raise ConfigError(
            f"nothing was written: {len(values)} values differ from those before {what}, and one change has "
            f"{MAX_VALUES} at most: roll back a later plan first"
        )
    if not values:
        raise ConfigError(f"nothing to roll back: every value of run {run} is as it was before {what}")
    return values


def _waiting(past: Past) -> Mapping[str, None]:
    """Names with a desired value that is neither agreed nor rejected: it was written after every plan."""
    cache = past.cache
    agreed = cache.agreed.values if cache.agreed else {}
    return dict.fromkeys(pending_names(cache.desired, agreed, cache.schema, cache.rejected))
