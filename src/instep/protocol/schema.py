"""What a hyperparameter may hold, by the JSON Schema of the run's pydantic model.

This check runs without the training script: it knows types, bounds, lengths, patterns and enumerations. Only workers
know validators written in Python; they check each change again before they promise it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from instep.names import FIXED_KEY, PREFER_KEY, REPLAY_KEY
from instep.scalar import Scalar, format_scalar, parse_scalar, shortened

_TYPES: Mapping[str, Any] = {"number": float, "integer": int, "string": str, "boolean": bool, "null": None}
_CONSTRAINTS: Mapping[str, str] = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
    "minLength": "min_length",
    "maxLength": "max_length",
    "pattern": "pattern",
}

_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
"""For a field that only workers can check."""


class Schema:
    """The hyperparameters of a run: names, types, bounds, defaults. Immutable. Without a document any scalar is
    valid."""

    def __init__(self, document: Mapping[str, Any] | None) -> None:
        self.document = None if document is None else dict(document)
        self._fields: Mapping[str, Mapping[str, Any]] = (document or {}).get("properties", {})
        self._definitions: Mapping[str, Mapping[str, Any]] = (document or {}).get("$defs", {})
        self._adapters: dict[str, TypeAdapter[Any]] = {}

    def __repr__(self) -> str:
        return f"Schema({', '.join(self.names) if self.document is not None else 'any scalar'})"

    @classmethod
    def decode(cls, text: str | bytes | None) -> Schema:
        """Reads the text of a schema key. An unreadable schema accepts any scalar, because the workers check again."""
        try:
            document = json.loads(text) if text else None
        except (ValueError, RecursionError):
            document = None
        return cls(document if _is_readable(document) else None)

    def encode(self) -> str:
        return json.dumps(self.document, sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """A short hash; workers compare their schemas by it."""
        return hashlib.sha256(self.encode().encode()).hexdigest()[:8]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._fields)

    @property
    def any_scalar(self) -> bool:
        """True when the run was joined without a schema."""
        return self.document is None

    @property
    def replays(self) -> str | None:
        """Digest of the replay schedule of the run; None without one."""
        digest = (self.document or {}).get(REPLAY_KEY)
        return digest if isinstance(digest, str) else None

    @property
    def prefers_script(self) -> bool:
        """Whether the run starts with the script's values even if etcd holds others."""
        return (self.document or {}).get(PREFER_KEY) == "script"

    def is_fixed(self, name: str) -> bool:
        """Whether it cannot be changed while the run trains."""
        return self.replays is not None or bool(self._fields.get(name, {}).get(FIXED_KEY))

    def is_text(self, name: str) -> bool:
        """Whether the hyperparameter holds text: the command line then accepts it without quotes."""
        field = self._resolved(self._fields.get(name, {}))
        options = field.get("anyOf", ())
        kinds = [field, *(self._resolved(option) for option in options if isinstance(option, Mapping))]
        return any(kind.get("type") == "string" for kind in kinds)

    def defaults(self) -> dict[str, Scalar]:
        return {name: field["default"] for name, field in self._fields.items() if "default" in field}

    def parse(self, name: str, text: str) -> Scalar:
        """Parses the JSON text of hyperparameter `name`. Raises ValueError with the reason."""
        if not self.any_scalar and name not in self._fields:
            raise ValueError(f"no hyperparameter has this name; there are {', '.join(self.names) or 'none'}")
        return self.check(name, parse_scalar(text))

    def check(self, name: str, value: Scalar) -> Scalar:
        """The value as the field's type holds it (1 as 1.0 in a float field). Raises ValueError with the reason."""
        if self.any_scalar:
            return value
        try:
            checked: Scalar = self._adapter(name).validate_json(json.dumps(value))
        except ValidationError as error:
            raise ValueError(_reason(error, value)) from None
        except TypeError:  # a constraint that does not fit the type: the workers check it
            return value
        if isinstance(checked, float) and not math.isfinite(checked):
            raise ValueError(f"{shortened(format_scalar(value))} is beyond what a float can hold")
        return checked

    def _adapter(self, name: str) -> TypeAdapter[Any]:
        if name not in self._adapters:
            try:
                annotation = self._annotation(self._fields[name])
                adapter = TypeAdapter(annotation, config=ConfigDict(strict=True))
            except Exception:  # noqa: BLE001 - pydantic raises many types for what it cannot build, such as a look-ahead
                adapter = _ANYTHING
            self._adapters[name] = adapter
        return self._adapters[name]

    def _annotation(self, field: Mapping[str, Any]) -> Any:
        field = self._resolved(field)
        if "enum" in field or "const" in field:
            choices = tuple(field.get("enum", (field.get("const"),)))
            return Literal[choices]  # the choices are known only now
        if "anyOf" in field:
            return Union[tuple(self._annotation(option) for option in field["anyOf"])]  # noqa: UP007 - built at run time
        kind = _TYPES.get(field.get("type", ""), Any)
        constraints = {ours: field[theirs] for theirs, ours in _CONSTRAINTS.items() if theirs in field}
        return Annotated[kind, Field(**constraints)] if constraints and kind is not Any else kind

    def _resolved(self, field: Mapping[str, Any]) -> Mapping[str, Any]:
        reference = field.get("$ref")
        if not isinstance(reference, str):
            return field
        return {**self._definitions.get(reference.rsplit("/", 1)[-1], {}), **field}


def _is_readable(document: object) -> bool:
    if not isinstance(document, dict):
        return False
    parts = (document.get("properties", {}), document.get("$defs", {}))
    return all(isinstance(part, dict) and all(map(_is_field, part.values())) for part in parts)


def _is_field(field: object) -> bool:
    return (
        isinstance(field, dict)
        and isinstance(field.get("anyOf", []), list)
        and not isinstance(field.get("default"), (list, dict))
    )


def _reason(error: ValidationError, value: Scalar) -> str:
    messages = dict.fromkeys(detail["msg"][:1].lower() + detail["msg"][1:] for detail in error.errors())
    return f"{shortened(format_scalar(value))}: {' or '.join(messages)}"
