"""In which values two moments of a run differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from instep.control._facts import Facts
from instep.control._past import Past, load_past
from instep.errors import ConfigError, SettingsError
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.scalar import Scalar, same

START, NOW, VIEW = "start", "now", "v"
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Difference(Facts):
    """One hyperparameter. `was_set` and `is_set` are False where it had no value; that is then None."""

    name: str
    before: Scalar
    after: Scalar
    was_set: bool
    is_set: bool


@dataclass(frozen=True, slots=True)
class Diff(Facts):
    """`before` and `after` name the two moments as they were asked for: a plan's number, `v` and the number of a view,
    `start` or `now`."""

    run: str
    revision: int
    before: str
    after: str
    changes: tuple[Difference, ...]


def parse_moment(text: str) -> str:
    """`12` for `12` and `#12`, `v3` for the start of view 3, or `start`, or `now`. Raises SettingsError for anything
    else."""
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


def view_of(moment: str) -> int | None:
    """`3` for `v3`: the view whose start is meant; None for any other moment."""
    return int(moment.removeprefix(VIEW)) if moment.startswith(VIEW) else None


async def diff(client: Client, keys: Keys, before: str, after: str) -> Diff:
    """The values that held after plan `before` and after plan `after`, where they differ.

    `v3` is what view 3 started with, `start` what the run first started with, as far as that is kept, and `now` what
    every rank has. Raises RunNotFound, SettingsError for what names no plan, and ConfigError for a plan that is unknown
    or was aborted, or whose values are not kept any more.
    """
    first, second = parse_moment(before), parse_moment(after)
    past = await load_past(client, keys)
    old, new = _values(past, first), _values(past, second)
    return Diff(keys.run, past.picture.revision, first, second, differences(old, new))


def differences(old: Mapping[str, Scalar], new: Mapping[str, Scalar]) -> tuple[Difference, ...]:
    return tuple(
        Difference(name, old.get(name), new.get(name), name in old, name in new)
        for name in dict.fromkeys((*old, *new))
        if not (name in old and name in new and same(old[name], new[name]))
    )


def _values(past: Past, moment: str) -> Mapping[str, Scalar]:
    picture = past.picture
    if moment == NOW:
        if picture.agreed is None:
            raise ConfigError(f"run {picture.keys.run} has not started yet: no values are agreed")
        if picture.schema.replays is not None:
            raise ConfigError(f"run {picture.keys.run} replays a schedule: its file says which values hold at a step")
        return picture.agreed.values
    if moment == START:
        segments = past.timeline.segments()
        if not segments:
            raise ConfigError(f"run {picture.keys.run} has not started yet: it has no start")
        return segments[0].start.values
    view = view_of(moment)
    if view is not None:
        return past.timeline.start(view).values
    past.check_plan(int(moment))
    return past.timeline.values_after(int(moment))
