"""Hyperparameters by name: parsing what a person typed, and showing what is agreed and what is desired."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from instep.control._cache import RunCache
from instep.control._read import load
from instep.control._report import JsonReport, closest
from instep.errors import ConfigError, SettingsError
from instep.etcd import Client
from instep.names import MAX_VALUE_BYTES, check_hyperparameter_name, is_hyperparameter_name
from instep.protocol.desired import DesiredValue
from instep.protocol.keys import Keys
from instep.protocol.records import format_ranks
from instep.protocol.schema import Schema
from instep.scalar import Scalar, format_scalar, same, shortened
from instep.text import one_line

MAX_VALUES = 100
"""Values in one change, which is one txn: etcd allows 128 operations."""

REPLAYS = (
    "the run replays a schedule, so its values come from that file; to steer it, stop it and start it without replay="
)


ValueState = Literal["agreed", "pending", "rejected"]


def parse_assignments(arguments: Iterable[str]) -> dict[str, str]:
    """`["lr=1e-4", "clip=0.5"]` as texts by name.

    Raises SettingsError for a part without `=`, an invalid name, or a name that is given twice.
    """
    texts: dict[str, str] = {}
    for argument in arguments:
        name, separator, text = argument.partition("=")
        if not separator:
            raise SettingsError(f"{shortened(argument)!r} is not name=value: write it without spaces, such as lr=1e-4")
        check_hyperparameter_name(name)
        if name in texts:
            raise SettingsError(f"{name} is given twice: give each hyperparameter once")
        texts[name] = text
    if not texts:
        raise SettingsError("nothing to set: give at least one name=value, such as lr=1e-4")
    if len(texts) > MAX_VALUES:
        raise SettingsError(f"{len(texts)} values are too many for one change: give at most {MAX_VALUES}")
    return texts


def check_values(
    texts: Mapping[str, str], schema: Schema, *, agreed: Mapping[str, Scalar] | None, live: bool
) -> dict[str, Scalar]:
    """The values with the types of their fields (1 as 1.0 in a float field).

    Raises ConfigError with all problems: a name that the schema lacks, a value that it does not accept, and, while the
    run is live, a new value for a fixed hyperparameter, or any value for a run that replays a schedule.
    """
    values: dict[str, Scalar] = {}
    problems: dict[str, str] = {}
    for name, text in texts.items():
        try:
            values[name] = _value(name, text, schema)
        except ValueError as error:
            problems[name] = str(error)
            continue
        if live and schema.replays is not None:
            problems[name] = REPLAYS
            continue
        unchanged = agreed is not None and name in agreed and same(agreed[name], values[name])
        if live and schema.is_fixed(name) and not unchanged:
            problems[name] = "it is fixed while the run trains; stop the run, set it, and start the run again"
    if problems:
        raise ConfigError(refusal(problems), problems=problems)
    return values


def refusal(problems: Mapping[str, str]) -> str:
    """One sentence with all problems of a change."""
    reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in problems.items())
    return f"nothing was written: {reasons}"


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Why a name is refused, with the one that was probably meant."""
    names = tuple(known)
    close = closest(name, names)
    there = f"there are {', '.join(names)}" if names else "the run has none"
    return (
        f"no hyperparameter has this name; did you mean {close}?"
        if close is not None
        else f"no hyperparameter has this name; {there}"
    )


def _value(name: str, text: str, schema: Schema) -> Scalar:
    if not schema.any_scalar and name not in schema.names:
        raise ValueError(unknown_name(name, schema.names))
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError("the value is not UTF-8 text") from None
    if size > MAX_VALUE_BYTES:
        raise ValueError(f"it has {size} bytes; {MAX_VALUE_BYTES} is the most a hyperparameter may have")
    value = _parsed(name, text, schema)
    try:
        written = len(format_scalar(value).encode())
    except UnicodeEncodeError:
        raise ValueError("the value cannot be encoded as UTF-8") from None
    if written > MAX_VALUE_BYTES:
        raise ValueError(f"as JSON it has {written} bytes; {MAX_VALUE_BYTES} is the most a hyperparameter may have")
    return value


def _parsed(name: str, text: str, schema: Schema) -> Scalar:
    """Parsed as JSON, else as people type it: text without quotes, and numbers such as .5 and 1_000."""
    try:
        return schema.parse(name, text)
    except ValueError:
        if schema.is_text(name) and not text.startswith('"'):
            return schema.check(name, text)
        number = _typed_number(text)
        if number is None:
            raise
    return schema.check(name, number)


def _typed_number(text: str) -> float | int | None:
    """A number in Python's notation, which JSON lacks; None for everything else, NaN and infinities included."""
    for read in (int, float):
        with suppress(ValueError):
            number: float | int = read(text)
            return number if math.isfinite(number) else None
    return None


@dataclass(frozen=True, slots=True)
class ValueStatus(JsonReport):
    """One hyperparameter. `agreed` is what every rank has, `desired` what was written last.

    `state` is pending or rejected if the desired value differs from the agreed one, and `why` then says what it waits
    for or why it was refused. A desired value that cannot be parsed is given as its text in etcd.
    """

    name: str
    state: ValueState
    agreed: Scalar
    has_agreed: bool
    desired: Scalar
    has_desired: bool
    revision: int | None
    """etcd revision of the desired value."""
    fixed: bool
    why: str | None = None


@dataclass(frozen=True, slots=True)
class ValuesReport(JsonReport):
    run: str
    revision: int
    values: tuple[ValueStatus, ...]


async def get(client: Client, keys: Keys, name: str | None = None) -> ValuesReport:
    """All hyperparameters of a run, or one. Raises RunNotFound, or ConfigError for a name that the run lacks."""
    if name is not None:
        check_hyperparameter_name(name)
    cache = await load(client, keys, members=True)
    found = values_of(cache)
    if name is not None:
        one = tuple(value for value in found if value.name == name)
        if not one:
            reason = unknown_name(name, (value.name for value in found))
            raise ConfigError(f"{name}: {reason}", problems={name: reason})
        found = one
    return ValuesReport(keys.run, cache.revision, found)


def values_of(cache: RunCache) -> tuple[ValueStatus, ...]:
    """In the order of the schema, then by name; needs the members to say why a value waits."""
    agreed = cache.agreed.values if cache.agreed else {}
    names = dict.fromkeys((*cache.schema.names, *sorted({*agreed, *cache.desired})))
    return tuple(_value_of(cache, name) for name in names)


def _value_of(cache: RunCache, name: str) -> ValueStatus:
    agreed = cache.agreed.values if cache.agreed else {}
    item = cache.desired.get(name)
    state: ValueState = "agreed"
    why = None
    desired: Scalar = None
    if item is not None:
        desired, usable = _desired_value(cache, item)
        if not (usable and name in agreed and same(agreed[name], desired)):
            state, why = _why(cache, item)
    return ValueStatus(
        name=name,
        state=state,
        agreed=agreed.get(name),
        has_agreed=name in agreed,
        desired=desired,
        has_desired=item is not None,
        revision=item.revision if item else None,
        fixed=cache.schema.is_fixed(name),
        why=why,
    )


def _desired_value(cache: RunCache, item: DesiredValue) -> tuple[Scalar, bool]:
    try:
        return cache.schema.parse(item.name, item.text), True
    except ValueError:
        return shortened(item.text), False


def _why(cache: RunCache, item: DesiredValue) -> tuple[ValueState, str]:
    if not is_hyperparameter_name(item.name):
        return "rejected", "no hyperparameter can have this name, so the run ignores the key: delete it"
    record = cache.rejected.get(item.name)
    if record is not None and record.revision == item.revision:
        return "rejected", one_line(record.reason)
    plan = cache.open_plan()
    if plan is not None and plan.revision == item.revision:
        return "pending", f"plan {plan.number} is open for step {plan.gate}"
    if not cache.live:
        return "pending", "no worker is alive; the next start of the run uses it"
    if cache.view is None:
        return "pending", "the run is forming and will start with it"
    missing = cache.ranks_missing()
    if missing:
        return "pending", f"it waits for rank {format_ranks(missing)}, which is missing"
    if plan is not None:
        return "pending", f"it waits for plan {plan.number}, which is open"
    newest = cache.newest_plan
    decision = cache.decisions.get(newest.number) if newest else None
    if newest is not None and newest.revision == item.revision and decision is not None and not decision.commit:
        return "pending", f"plan {newest.number} was aborted ({one_line(decision.reason or '')}); it is planned again"
    return "pending", "it waits for the run's leader to plan it"
