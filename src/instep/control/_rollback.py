"""Taking changes back: what held before a plan is written as one change, so it is one plan itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from instep.control._assignments import MAX_VALUES, refusal
from instep.control._change import TRIES, Written, change_by, look, write_checked
from instep.control._facts import Facts
from instep.control._past import Past, load_past
from instep.errors import ConfigError
from instep.etcd import Client, Compare
from instep.protocol.desired import pending_names
from instep.protocol.keys import Keys
from instep.protocol.timeline import Position
from instep.scalar import Scalar, format_scalar, same


@dataclass(frozen=True, slots=True)
class RolledBack(Facts):
    """`plan` is the one before which the values held that are now wanted again; None where it is the start of `view`,
    with changes that were made while nobody trained."""

    plan: int | None
    written: Written
    view: int | None = None


async def rollback(
    client: Client,
    keys: Keys,
    plan: int | None = None,
    *,
    view: int | None = None,
    author: str | None = None,
    reason: str | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> RolledBack:
    """Want again what held before `plan`: of every value that it or anything later changed, in one change.

    With `view` in place of a plan it is what was changed before that view started. Without either it is the newest
    change of values; a rollback is such a change too. Nothing is
    written unless the agreed values are still those that were looked at. Raises RunNotFound, EtcdUnavailable
    as `set_values` does, and ConfigError when there is nothing to take back, for a plan that is unknown, was
    aborted or is not kept any more, and for values that the run does not take now.
    """
    asked_at_s = monotonic()
    change_by(author, reason)
    for _ in range(TRIES):
        past = await load_past(client, keys)
        position = _position(past, plan, view)
        values = values_to_restore(past, position)
        before = await look(client, keys)
        number, of_view = position
        what = f"the start of view {of_view}" if of_view else f"plan {number}"
        why = f"rollback of {what}" + (f": {reason}" if reason else "")
        # Not while another change is agreed on: what is to be taken back would be another.
        guard = Compare.mod_revision(keys.agreed, "<", past.picture.revision + 1)
        texts = {name: format_scalar(value) for name, value in values.items()}
        written = await write_checked(client, before, texts, change_by(author, why), asked_at_s, (guard,))
        if written is not None:
            return RolledBack(None, written, of_view) if of_view else RolledBack(number, written)
    raise ConfigError(
        f"nothing was written: the values of {keys.run} changed {TRIES} times while they were looked at; try again"
    )


def _position(past: Past, plan: int | None, view: int | None) -> Position:
    """Raises ConfigError."""
    if view is not None:
        return past.timeline.start(view).plan, view
    if plan is not None:
        return plan, 0
    newest = past.timeline.newest_change()
    if newest is None:
        raise ConfigError(f"nothing to roll back: no change of run {past.picture.keys.run} is known")
    return newest


def values_to_restore(past: Past, position: Position) -> dict[str, Scalar]:
    """What must be written so that the values are again those from before that plan or start. Pure. Raises
    ConfigError."""
    run, timeline = past.picture.keys.run, past.timeline
    number, view = position
    if view:
        start = timeline.start(view)
        if not start.changes:
            raise ConfigError(f"the start of view {view} of run {run} changed no value: there is none to take back")
        what, target = f"the start of view {view}", start.before
    else:
        past.check_plan(number)
        kind = timeline.plans[number].kind
        if kind != "config":
            raise ConfigError(
                f"plan {number} of run {run} is a {kind}: it changed no value, so there is none to take back"
            )
        what, target = f"plan {number}", timeline.values_before(number)
    agreed = past.picture.agreed.values if past.picture.agreed else {}
    waiting = _waiting(past)
    names = dict.fromkeys((*timeline.changed_since(position), *waiting))
    unset = f"it had no value before {what}, and one cannot be taken away"
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
    """Names with a desired value that is neither agreed nor rejected: it was written later than any plan."""
    picture = past.picture
    agreed = picture.agreed.values if picture.agreed else {}
    return dict.fromkeys(pending_names(picture.desired, agreed, picture.schema, picture.rejected))
