"""The value of one hyperparameter: a JSON scalar, as etcd holds it and people write it."""

from __future__ import annotations

import json
import math

from instep.names import MAX_VALUE_BYTES

Scalar = bool | int | float | str | None


def parse_scalar(text: str) -> Scalar:
    """Parses one JSON scalar. Raises ValueError, with the fix, for anything else: lists, NaN, bare words, over 64
    KiB."""
    if len(text.encode()) > MAX_VALUE_BYTES:
        raise ValueError(f"it has {len(text.encode())} bytes; {MAX_VALUE_BYTES} is the most a hyperparameter may have")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{shortened(text)} is not JSON: write a number, true, false, null, or text in quotes"
        ) from None
    if isinstance(value, (list, dict)):
        raise ValueError(
            f"{shortened(text)} is not one value: a hyperparameter is a number, a text, true, false or null"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{shortened(text)} is beyond what a float can hold")
    if isinstance(value, str) and not _is_utf8(value):
        raise ValueError(f"{shortened(text)} has a lone surrogate: it is not valid UTF-8 text")
    return value  # type: ignore[no-any-return]  # json.loads is untyped; the cases above leave scalars


def format_scalar(value: Scalar) -> str:
    """The JSON text of a value, as etcd holds it."""
    return json.dumps(value, ensure_ascii=False)


def same(left: Scalar, right: Scalar) -> bool:
    """Whether two values are equal, and both or neither are bools: 1 and True differ, 1 and 1.0 do not."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _is_utf8(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(text: str) -> Scalar:
    raise ValueError(text)


def shortened(text: str) -> str:
    """At most 60 characters of a text, for messages."""
    return text if len(text) <= 60 else text[:57] + "..."
