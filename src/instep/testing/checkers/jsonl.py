"""Records as lines of JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from instep.errors import SettingsError

_TYPE = "_"
_BYTES = "bytes"
_RECORDS: dict[str, type[Any]] = {}

T = TypeVar("T")


def record(kind: type[T]) -> type[T]:
    """Class decorator for a frozen dataclass of scalars, bytes, tuples and other records: makes it storable."""
    _RECORDS[kind.__name__] = kind
    return kind


def encode(item: object) -> str:
    """One line, without a newline."""
    return json.dumps(_to_json(item), separators=(",", ":"))


def decode(line: str) -> Any:
    """Parses a line. Raises SettingsError if it is not a record."""
    try:
        item = json.loads(line)
        if isinstance(item, dict):
            return _from_json(item)
        reason: object = "it is not an object with a type"
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = error
    raise SettingsError(f"not a line of a history: {line[:200]!r} ({reason})")


def save_records(path: Path | str, items: Iterable[object]) -> int:
    """Writes the records to a file. Returns their number."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for item in items:
            file.write(encode(item) + "\n")
            count += 1
    return count


def load_records(path: Path | str) -> Iterator[Any]:
    """The records of a file, one by one. Skips an incomplete last line: its writer was killed."""
    # Bytes that are not UTF-8 make an invalid line.
    with Path(path).open(encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        for line in file:
            if line.endswith("\n"):
                yield decode(line)


def _to_json(item: object) -> object:
    if is_dataclass(item) and type(item).__name__ in _RECORDS:
        return {_TYPE: type(item).__name__} | {f.name: _to_json(getattr(item, f.name)) for f in fields(item)}
    if isinstance(item, bytes):
        return {_TYPE: _BYTES, "base64": base64.b64encode(item).decode("ascii")}
    if isinstance(item, tuple):
        return [_to_json(part) for part in item]
    if item is None or isinstance(item, (str, int, float)):
        return item
    raise SettingsError(f"a history cannot keep a {type(item).__name__}: {item!r:.100}")


def _from_json(item: Any) -> Any:
    if isinstance(item, list):
        return tuple(_from_json(part) for part in item)
    if not isinstance(item, dict):
        return item
    kind = item.pop(_TYPE)
    if kind == _BYTES:
        return base64.b64decode(item["base64"], validate=True)
    return _RECORDS[kind](**{name: _from_json(part) for name, part in item.items()})
