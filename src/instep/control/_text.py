"""How values and facts are written for people. Pure; nothing here adds color or prints."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from decimal import Decimal

from instep.control._facts import ValueChange
from instep.scalar import Scalar, format_scalar, same
from instep.text import one_line

MAX_SHOWN = 40
"""Characters of one value in a sentence."""

_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_./:@+-]*\Z")
_LITERALS = ("true", "false", "null", "NaN", "Infinity")


def format_value(value: Scalar) -> str:
    """The value as short as it can be written without loss: `3e-4` for 0.0003, `cosine` for "cosine".

    Text that could be mistaken for another kind of value keeps its quotes; long text is cut at 40 characters.
    """
    if isinstance(value, float):
        return _short_float(value)
    if isinstance(value, str) and _BARE.match(value) and value not in _LITERALS:
        return shortened(value)
    return shortened(one_line(format_scalar(value)))


def format_change(change: ValueChange) -> str:
    """`lr 3e-4 → 1e-4`; `lr → 1e-4` for one that had no value before; `lr 3e-4` for one that stays as it is."""
    before = f" {format_value(change.before)}" if change.was_set else ""
    if change.was_set and same(change.before, change.after):
        return f"{change.name}{before}"
    return f"{change.name}{before} → {format_value(change.after)}"


def format_changes(changes: Iterable[ValueChange]) -> str:
    return ", ".join(format_change(change) for change in changes)


def shortened(text: str, limit: int = MAX_SHOWN) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def closest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that may have been meant: the same in another case, the only one that begins or ends with it,
    or one that is spelled alike."""
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


def counted(number: int, noun: str) -> str:
    """`1 rank`, `3 ranks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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
