"""From `name=value` as typed to values that the run's schema accepts. Pure: nothing is read or written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from instep.control._text import closest
from instep.errors import ConfigError, SettingsError
from instep.names import MAX_VALUE_BYTES, check_hyperparameter_name
from instep.protocol.schema import Schema
from instep.scalar import Scalar, format_scalar, same

MAX_VALUES = 100
"""Values in one change: it is one txn, and etcd allows 128 operations."""

REPLAYS = (
    "the run replays a schedule, so its values come from that file; to steer it, stop it and start it without replay="
)


def parse_assignments(arguments: Iterable[str]) -> dict[str, str]:
    """`["lr=1e-4", "clip=0.5"]` as texts by name.

    Raises SettingsError for a part without `=`, a name that cannot be one, or a name given twice.
    """
    texts: dict[str, str] = {}
    for argument in arguments:
        name, separator, text = argument.partition("=")
        if not separator:
            raise SettingsError(f"{_safe(argument)!r} is not name=value: write it without spaces, such as lr=1e-4")
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
    """The values as the fields hold them (1 as 1.0 in a float field).

    Raises ConfigError with every problem at once: a name the schema does not have, a value it does not
    accept, and, while the run is live, another value for a hyperparameter that is fixed, or any at all for a run
    that replays a schedule.
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
            problems[name] = "it is fixed while the run goes on; stop the run, set it, and start the run again"
    if problems:
        raise ConfigError(refusal(problems), problems=problems)
    return values


def refusal(problems: Mapping[str, str]) -> str:
    """One sentence for all that is wrong with a change."""
    reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in problems.items())
    return f"nothing was written: {reasons}"


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Why a name is refused, with the one that may have been meant."""
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
        raise ValueError("the value is no text that can be written as UTF-8") from None
    if written > MAX_VALUE_BYTES:
        raise ValueError(f"as JSON it has {written} bytes; {MAX_VALUE_BYTES} is the most a hyperparameter may have")
    return value


def _parsed(name: str, text: str, schema: Schema) -> Scalar:
    """As JSON first; else as people type it: text without quotes, and numbers such as .5 and 1_000."""
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
    """What Python reads as a number and JSON does not; None for all else, NaN and infinities included."""
    for read in (_int, _float):
        number = read(text)
        if number is not None:
            return number if math.isfinite(number) else None
    return None


def _int(text: str) -> float | int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _float(text: str) -> float | int | None:
    try:
        return float(text)
    except ValueError:
        return None


def _safe(argument: str) -> str:
    return argument if len(argument) <= 60 else argument[:57] + "..."
