"""The arithmetic of a binding: ratios, points of a schedule, kinds of number. Pure: no torch, no state."""

from __future__ import annotations

import math
from enum import Enum

Number = float | int | bool


class Kind(Enum):
    """What a parameter group holds under a key, and so what an agreed value may be."""

    FLAG = "a bool"
    WHOLE = "an int"
    REAL = "a float"


def kind_of(value: object) -> Kind | None:
    """The kind of a group's value; None for what cannot be steered (None, text, a tuple)."""
    if isinstance(value, bool):
        return Kind.FLAG
    if isinstance(value, int):
        return Kind.WHOLE
    return Kind.REAL if isinstance(value, float) else None


def why_unusable(value: object, kind: Kind) -> str | None:
    """Why `value` cannot be agreed for a key of this kind, as the end of a sentence; None when it can."""
    if kind is Kind.FLAG:
        return None if isinstance(value, bool) else f"is {value!r}, not a bool"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"is {value!r}, not a number"
    return None if math.isfinite(value) else f"is {value!r}, not a finite number"


def ratio_of(value: float, default: float) -> float | None:
    """What `value` is to `default`. Equal is 1, zero and zero too; None when the default alone is zero."""
    if value == default:
        return 1.0
    return None if default == 0 else value / default


def share_of(ratio: float, agreed: Number, kind: Kind) -> Number:
    """What a group with `ratio` holds when `agreed` is agreed.

    A flag is the agreed flag. A whole field stays an int where the product is whole, and is a float where it
    is not: `weight_decay=0` is an int only by accident of its spelling.
    """
    if kind is Kind.FLAG:
        return bool(agreed)
    share = ratio * agreed
    return int(share) if kind is Kind.WHOLE and float(share).is_integer() else float(share)


def point_of(value: float, base: float) -> float:
    """Where on its schedule `value` is: what it is to `base`. A base of zero counts as standing on it."""
    return 1.0 if base == 0 else value / base


def rebased(value: float, base: float, target: float) -> float:
    """`value` at the same point of its schedule, which started from `base`, had it started from `target`.

    Exact when the base does not move, and when the value stands on its base.
    """
    return value if base == target else point_of(value, base) * target


def anchor_of(agreed: float, before: float) -> float:
    """The value a schedule is kept on: the agreed one, or, while that is zero, the last that was not."""
    return before if agreed == 0 else agreed
