"""Trains a run with the values of a schedule, which is read and checked before anything is contacted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from instep.errors import ConfigError, SettingsError
from instep.names import FIXED_KEY, MAX_TOTAL_BYTES, REPLAY_KEY
from instep.scalar import Scalar, format_scalar, same
from instep.schedule import MAX_STEP, Schedule
from instep.worker.hyper import Codec

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
NEVER: Final = MAX_STEP + 1

REFUSAL: Final = "this run replays a schedule: its values come from the file, not from live changes"


class Replay:
    """The values of a schedule by step, for one worker. The values of every step fit the script's hyperparameters.

    Limit: that all ranks replay the same file is checked by the digest in `document`, when they join.
    """

    def __init__(self, schedule: Schedule, codec: Codec, name: str = "the schedule") -> None:
        """Raises ConfigError if the script does not accept the values. `name` is the file's name in messages."""
        self.schedule = schedule
        self._name = name
        self._fixed = _fixed_names(codec.document)
        _check_names(schedule, codec, name)
        self._next = 0
        self._values = dict(schedule.values)
        _check_values(schedule, codec, name)
        self.document = _document(schedule, codec)

    def __repr__(self) -> str:
        return f"Replay({self._name}, {len(self.schedule.changes)} changes, digest {self.schedule.digest})"

    @classmethod
    def read(cls, path: str | os.PathLike[str], codec: Codec) -> Replay:
        """Raises SettingsError if the file cannot be read or is no schedule, ConfigError if its values do not fit
        the script."""
        try:
            name = f"the schedule {os.fspath(path)!r}"
        except TypeError:
            raise SettingsError(f"replay is {path!r}: it must be the path of a schedule file") from None
        try:
            schedule = Schedule.decode(_text(Path(path), name))
        except SettingsError as error:
            raise SettingsError(f"{name} cannot be replayed: {error}") from None
        return cls(schedule, codec, name)

    def values_at(self, step: int) -> Mapping[str, Scalar]:
        """The values at a step. Cheap while the steps rise from call to call."""
        changes = self.schedule.changes
        if self._next and changes[self._next - 1].step > step:
            self._next, self._values = 0, dict(self.schedule.values)
        while self._next < len(changes) and changes[self._next].step <= step:
            self._values |= changes[self._next].values
            self._next += 1
        return dict(self._values)

    @property
    def next_step(self) -> int:
        """The first step with other values, after the last one that was asked for."""
        changes = self.schedule.changes
        return changes[self._next].step if self._next < len(changes) else NEVER

    def check_fixed(self, before: Mapping[str, Scalar], after: Mapping[str, Scalar], step: int) -> None:
        """Raises ConfigError if a training worker would need another value of a fixed hyperparameter."""
        changed = [name for name in self._fixed if not same(before.get(name), after.get(name))]
        if changed:
            raise ConfigError(
                f"{self._name} changes {', '.join(changed)} before step {step}, which is fixed while a run trains, as "
                f"the run was restarted there: save a checkpoint of step {step - 1}, and start the replay again "
                "from it",
                problems=dict.fromkeys(changed, f"it is fixed, and changes before step {step}"),
            )


def _text(path: Path, name: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"it cannot be read ({reason})") from None
    if len(content) > MAX_FILE_BYTES:
        raise SettingsError(f"it has more than {MAX_FILE_BYTES >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError("it is not UTF-8 text") from None


def _check_names(schedule: Schedule, codec: Codec, name: str) -> None:
    if codec.document is None:
        return
    declared = codec.document.get("properties", {})
    problems = {other: "the script does not declare it" for other in schedule.names if other not in declared}
    problems |= {other: "it has no start value in the file" for other in declared if other not in schedule.values}
    if problems:
        listed = "; ".join(f"{other}: {reason}" for other, reason in problems.items())
        raise ConfigError(
            f"{name} is of other hyperparameters than the script's ({listed}): run the version of the script that it "
            "was exported from, or make the file's values those that the script declares",
            problems=problems,
        )


def _check_values(schedule: Schedule, codec: Codec, name: str) -> None:
    """Checks the values of each step as a whole: a validator may look at several values."""
    values: dict[str, Scalar] = {}
    for step, change in ((None, schedule.values), *((change.step, change.values) for change in schedule.changes)):
        values |= change
        where = "to start with" if step is None else f"at step {step}"
        size = sum(len(other) + len(format_scalar(value).encode()) + 8 for other, value in values.items())
        if size > MAX_TOTAL_BYTES:
            raise ConfigError(f"the values of {name} {where} have {size} bytes together: {MAX_TOTAL_BYTES} is the most")
        problems = codec.problems({}, values)
        if problems:
            listed = "; ".join(f"{other}: {reason}" for other, reason in problems.items())
            raise ConfigError(
                f"the script does not take the values of {name} {where} ({listed}): run the version of the script that "
                "it was exported from, or correct the file",
                problems=problems,
            )


def _document(schedule: Schedule, codec: Codec) -> dict[str, Any]:
    """The JSON Schema that this worker joins with: it has the digest of the schedule, and its first values as
    defaults."""
    document = codec.document or {"type": "object"}
    fields = document.get("properties") or {name: {} for name in schedule.names}
    begun = {
        name: {**field, "default": schedule.values[name]} if name in schedule.values else field
        for name, field in fields.items()
    }
    return {**document, "properties": begun, REPLAY_KEY: schedule.digest}


def _fixed_names(document: Mapping[str, Any] | None) -> tuple[str, ...]:
    fields = (document or {}).get("properties", {})
    return tuple(name for name, field in fields.items() if field.get(FIXED_KEY))
