"""The values of a run by step: what `instep history RUN --export FILE` writes and `instep.join(replay=FILE)` reads.

One JSON document: `{"instep_schedule": 1, "run", "values", "changes": [{"step", "values", "author", "reason"}]}`.
`values` are valid from the first step on, and each change from its step on: every rank applies it before that step.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from instep.errors import SettingsError
from instep.names import MAX_VALUE_BYTES, check_hyperparameter_name
from instep.scalar import Scalar, format_scalar

FORMAT: Final = 1
MARK: Final = "instep_schedule"
MAX_STEP: Final = 2**62 - 1
_FIX: Final = "export it again with 'instep history RUN --export FILE'"


@dataclass(frozen=True, slots=True)
class ScheduledChange:
    """The values that change before `step`. Author and reason are for people only."""

    step: int
    values: Mapping[str, Scalar]
    author: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Schedule:
    """An immutable schedule. The steps of its changes increase."""

    run: str
    values: Mapping[str, Scalar]
    changes: tuple[ScheduledChange, ...] = ()

    def to_json(self) -> dict[str, Any]:
        changes = [
            {"step": change.step, "values": dict(change.values), "author": change.author, "reason": change.reason}
            for change in self.changes
        ]
        return {MARK: FORMAT, "run": self.run, "values": dict(self.values), "changes": changes}

    def encode(self) -> str:
        return json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n"

    @cached_property
    def digest(self) -> str:
        """A hash of steps, names and values. Authors and reasons do not count."""
        content = [dict(self.values), *([change.step, dict(change.values)] for change in self.changes)]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of all values, including those that occur only in a change."""
        return tuple(dict.fromkeys((*self.values, *(name for change in self.changes for name in change.values))))

    @classmethod
    def decode(cls, text: str) -> Schedule:
        """Parses a document. Raises SettingsError, with a message that omits the file name, if it is invalid."""
        document = _json(text)
        if not isinstance(document, dict) or MARK not in document:
            raise SettingsError(f"it is not a schedule of Instep: it has no {MARK!r}; {_FIX}")
        if document[MARK] != FORMAT or isinstance(document[MARK], bool):
            raise SettingsError(
                f"its format is {_shown(document[MARK])}, and this version of Instep reads {FORMAT}: {_FIX}"
            )
        changes = document.get("changes")
        if not isinstance(changes, list):
            raise SettingsError(f"its changes are not a list: {_FIX}")
        found: list[ScheduledChange] = []
        for number, item in enumerate(changes, 1):
            change = _change(item, f"change {number}")
            if found and change.step <= found[-1].step:
                raise SettingsError(
                    f"change {number} is for step {change.step} and comes after one for step {found[-1].step}: "
                    "the steps must increase"
                )
            found.append(change)
        return cls(_text(document.get("run")) or "", _values(document.get("values"), "the start"), tuple(found))


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refused, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""
        raise SettingsError(f"it is not JSON{reason}: {_FIX}") from None


def _change(item: object, what: str) -> ScheduledChange:
    if not isinstance(item, dict):
        raise SettingsError(f"{what} is {_shown(item)}: it must be an object with step and values")
    step = item.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= MAX_STEP:
        raise SettingsError(f"the step of {what} is {_shown(step)}: it must be a whole number of at least 0")
    values = _values(item.get("values"), f"{what} (step {step})")
    if not values:
        raise SettingsError(f"{what} (step {step}) changes no value: leave it out")
    return ScheduledChange(step, values, _text(item.get("author")), _text(item.get("reason")))


def _values(item: object, what: str) -> dict[str, Scalar]:
    if not isinstance(item, dict):
        raise SettingsError(f"the values of {what} are {_shown(item)}: they must be an object of values by name")
    for name, value in item.items():
        check_hyperparameter_name(name)
        problem = _problem(value)
        if problem:
            raise SettingsError(f"{name} of {what} is {_shown(value)}: {problem}")
    return item


def _problem(value: object) -> str | None:
    if isinstance(value, list | dict):
        return "a hyperparameter is one number, text, true, false or null"
    if isinstance(value, float) and not math.isfinite(value):
        return "that is beyond what a float can hold"
    try:
        size = len(format_scalar(value).encode())  # type: ignore[arg-type]  # JSON leaves scalars
    except (UnicodeEncodeError, ValueError):
        return "that is not valid UTF-8 text"
    return f"it has {size} bytes, and {MAX_VALUE_BYTES} is the most" if size > MAX_VALUE_BYTES else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except ValueError:
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not valid JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, _ in pairs if sum(other == name for other, _ in pairs) > 1)
        raise ValueError(f"{twice!r} occurs twice in one object")
    return found
