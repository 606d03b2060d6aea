"""The arithmetic of a binding: ratios, points of a schedule, kinds of number. Pure: no torch, no state."""

from __future__ import annotations

import math
from enum import Enum

Number = float | int | bool


class ValueKind(Enum):
    """The kind of value under a key of a parameter group, and so of the agreed value."""

    FLAG = "a bool"
    WHOLE = "an int"
    REAL = "a float"


def kind_of(value: object) -> ValueKind | None:
    """The kind of a group's value; None for what cannot be bound (None, text, a tuple)."""
    if isinstance(value, bool):
        return ValueKind.FLAG
    if isinstance(value, int):
        return ValueKind.WHOLE
    return ValueKind.REAL if isinstance(value, float) else None


def why_unusable(value: object, kind: ValueKind) -> str | None:
    """Why `value` does not fit a key of this kind, as the end of a sentence; None if it fits."""
    if kind is ValueKind.FLAG:
        return None if isinstance(value, bool) else f"is {value!r}, not a bool"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"is {value!r}, not a number"
    return None if math.isfinite(value) else f"is {value!r}, not a finite number"


def ratio_of(value: float, default: float) -> float | None:
    """`value` divided by `default`; 1 if they are equal, even if both are zero; None if only the default is zero."""
    if value == default:
        return 1.0
    return None if default == 0 else value / default


def share_of(ratio: float, agreed: Number, kind: ValueKind) -> Number:
    """The value of a group with `ratio` for the agreed value `agreed`.

    A flag is copied. For a whole field, the result is an int if the product is whole, else a float: `weight_decay=0` is
    an int only by the way it was written.
    """
    if kind is ValueKind.FLAG:
        return bool(agreed)
    share = ratio * agreed
    return int(share) if kind is ValueKind.WHOLE and float(share).is_integer() else float(share)


def point_of(value: float, base: float) -> float:
    """The point of the schedule: `value` divided by `base`; 1 for a base of zero."""
    return 1.0 if base == 0 else value / base


def rebased(value: float, base: float, target: float) -> float:
    """`value`, on a schedule that started from `base`, moved to one that starts from `target`.

    Exact if the base does not move, and if the value equals its base.
    """
    return value if base == target else point_of(value, base) * target


def anchor_of(agreed: float, before: float) -> float:
    """The value that a schedule is scaled to: the agreed one, or the last nonzero one while that is zero."""
    return before if agreed == 0 else agreed
