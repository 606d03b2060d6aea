"""What the functions of this package return: frozen facts, which turn into plain JSON documents with stable keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from instep.scalar import Scalar


class Facts:
    """A frozen dataclass whose field names are the keys of its JSON document."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """Only dicts, lists, text, numbers, booleans and None; of numbers that JSON lacks the name (`NaN`, `Infinity`,
        `-Infinity`) as text."""
        document = _plain(self)
        assert isinstance(document, dict)
        return document


@dataclass(frozen=True, slots=True)
class ValueChange(Facts):
    """One hyperparameter of a change. `was_set` is False when it had no value before; `before` is then None."""

    name: str
    before: Scalar
    after: Scalar
    was_set: bool = True


def changes_between(values: Mapping[str, Scalar], before: Mapping[str, Scalar]) -> tuple[ValueChange, ...]:
    return tuple(ValueChange(name, before.get(name), value, name in before) for name, value in values.items())


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        shown = (field.name for field in fields(value) if field.metadata.get("json", True))
        return {name: _plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
