"""What the functions of this package return, and how it is written for people. Pure: nothing here adds color or prints.

A report is a frozen dataclass that turns into a plain JSON document with stable keys.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from decimal import Decimal
from typing import Any

from instep.protocol.records import Record
from instep.scalar import Scalar, format_scalar, same
from instep.text import counted, one_line

MAX_SHOWN = 40
"""Characters of one value in a sentence."""
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./:@+-]*\Z")
_LITERALS = ("true", "false", "null", "NaN", "Infinity")


class JsonReport:
    """A frozen dataclass whose field names are the keys of its JSON document."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Only dicts, lists, text, numbers, booleans and None. Numbers that JSON lacks become text: `NaN`, `Infinity`,
        `-Infinity`."""
        document = _plain(self)
        assert isinstance(document, dict)
        return document


@dataclass(frozen=True, slots=True)
class ValueChange(JsonReport):
    """One hyperparameter of a change. `was_set` is False when it had no value before; `before` is then None."""

    name: str
    before: Scalar
    after: Scalar
    was_set: bool = True


def changes_between(values: Mapping[str, Scalar], before: Mapping[str, Scalar]) -> tuple[ValueChange, ...]:
    """`before` lacks the names that had no value."""
    return tuple(ValueChange(name, before.get(name), value, name in before) for name, value in values.items())


def planned_changes(values: Mapping[str, Scalar], previous: Mapping[str, Scalar]) -> tuple[ValueChange, ...]:
    """The changes of a plan, whose `previous` holds None for a name that had no value."""
    return changes_between(values, {name: value for name, value in previous.items() if value is not None})


def all_same(values: Mapping[str, Scalar], agreed: Mapping[str, Scalar]) -> bool:
    """Whether all of `values` are agreed already."""
    return all(name in agreed and same(agreed[name], value) for name, value in values.items())


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        shown = (field.name for field in fields(value) if field.metadata.get("json", True))
        return {name: _plain(getattr(value, name)) for name in shown}
    if isinstance(value, Record):
        return _plain(value.model_dump())
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def format_value(value: Scalar) -> str:
    """The shortest text that loses nothing: `3e-4` for 0.0003, `cosine` for "cosine".

    Text that could be mistaken for another kind of value keeps its quotes; long text is cut at 40 characters.
    """
    if isinstance(value, float):
        return _short_float(value)
    if isinstance(value, str) and _BARE.match(value) and value not in _LITERALS:
        return shortened(value)
    return shortened(one_line(format_scalar(value)))


def format_change(change: ValueChange) -> str:
    """`lr 3e-4 → 1e-4`; `lr → 1e-4` if it had no value before; `lr 3e-4` if it does not change."""
    before = f" {format_value(change.before)}" if change.was_set else ""
    if change.was_set and same(change.before, change.after):
        return f"{change.name}{before}"
    return f"{change.name}{before} → {format_value(change.after)}"


def format_changes(changes: Iterable[ValueChange]) -> str:
    return ", ".join(format_change(change) for change in changes)


def shortened(text: str, limit: int = MAX_SHOWN) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def closest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant: the same in another case, the only one that begins or ends with it, or one with
    a similar spelling."""
    by_lower: dict[str, str] = {}
    for one in names:
        by_lower.setdefault(one.lower(), one)
    wanted = name.lower()
    if wanted in by_lower:
        return by_lower[wanted]
    around = [lower for lower in by_lower if wanted and (lower.startswith(wanted) or lower.endswith(wanted))]
    alike = difflib.get_close_matches(wanted, by_lower, n=1, cutoff=0.6)
    found = around if len(around) == 1 else alike
    return by_lower[found[0]] if found else None


def format_bytes(number: int) -> str:
    """`1.2 GB`, in powers of 1000 and two or three digits."""
    size, units = float(number), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        del units[0]
    if units[0] == "bytes":
        return counted(number, "byte")
    return f"{size:.1f} {units[0]}" if size < 9.95 else f"{size:.0f} {units[0]}"


def _short_float(value: float) -> str:
    plain = repr(value)
    sign, digits, exponent = Decimal(plain).normalize().as_tuple()
    if not isinstance(exponent, int) or not any(digits):
        return plain
    power = exponent + len(digits) - 1
    if -3 < power < 5:
        return plain
    mantissa = str(digits[0]) + ("." + "".join(map(str, digits[1:])) if len(digits) > 1 else "")
    scientific = f"{'-' if sign else ''}{mantissa}e{power}"
    return scientific if len(scientific) < len(plain) or "e" in plain else plain
