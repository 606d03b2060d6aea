"""Hyperparameters as a training script declares and reads them.

A value is checked twice: by JSON Schema where it is written, and by the model itself, with all its validators, in
every worker before it promises to apply it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError
from pydantic_core import PydanticUndefined

from instep.errors import ConfigError, SettingsError
from instep.names import FIXED_KEY, PREFER_KEY, check_hyperparameter_name
from instep.scalar import Scalar, format_scalar

_SCALAR_TYPES = {"number", "integer", "string", "boolean", "null"}


Groups: TypeAlias = Sequence[tuple[int, Mapping[str, Scalar]]]
"""Values by the revision that wrote them, the oldest first."""


class Hyperparameters(BaseModel):
    """Base of a run's hyperparameters: a frozen pydantic model whose fields are scalars, each with a default.

    Validation is strict (no text for a number). Raises SettingsError when the class is used in a run and a field has no
    default, holds more than one value, or has a name that cannot be part of a key.
    """

    # defer_build: the validator is built when the run is joined, not while the trainer imports its modules.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, defer_build=True
    )


def fixed(default: Any, **constraints: Any) -> Any:
    """A hyperparameter that is read at the start of a view and refused while it runs. Takes `Field`'s constraints."""
    return Field(default, json_schema_extra={FIXED_KEY: True}, **constraints)


class FreeConfig(Mapping[str, Scalar]):
    """The config of a run that was joined without a schema: read-only, by key or as attributes."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Scalar]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Scalar:
        return self._values[name]

    def __getattr__(self, name: str) -> Scalar:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"no hyperparameter {name!r} is set; there are {sorted(self._values)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"FreeConfig({', '.join(f'{name}={value!r}' for name, value in self._values.items())})"


class Codec:
    """Between agreed values and the object that the training script reads. One per run; holds no values."""

    def __init__(self, model: object, *, prefer_script: bool = False) -> None:
        """With `prefer_script` the document says so, and ranks compare it with the rest of the document."""
        if not (model is None or (isinstance(model, type) and issubclass(model, BaseModel))):
            raise SettingsError(f"the schema must be a subclass of instep.Hyperparameters, not {model!r}")
        self._model = model
        self.document = None if model is None else _document(model)
        if prefer_script and self.document is not None:
            self.document[PREFER_KEY] = "script"

    def differences(self, values: Mapping[str, Scalar]) -> list[str]:
        """Values that are not the script's own defaults, each as `lr=0.01 (script: 0.004)`."""
        fields = (self.document or {}).get("properties", {})
        defaults = {name: field["default"] for name, field in fields.items() if "default" in field}
        return [
            f"{name}={format_scalar(values[name])} (script: {format_scalar(default)})"
            for name, default in defaults.items()
            if name in values and values[name] != default
        ]

    def decode(self, values: Mapping[str, Scalar]) -> Any:
        """A new frozen config. Raises ConfigError naming each value that the model does not accept."""
        if self._model is None:
            return FreeConfig(values)
        try:
            return self._model.model_validate_json(json.dumps(dict(values)))
        except ValidationError as error:
            problems = _problems(error, values)
            listed = "; ".join(f"{name}: {reason}" for name, reason in problems.items())
            raise ConfigError(
                f"the agreed hyperparameters do not fit {self._model.__name__} ({listed}): write a usable value with "
                "'instep set', or start all ranks with the same version of the script",
                problems=problems,
            ) from None

    def problems(self, values: Mapping[str, Scalar], change: Mapping[str, Scalar]) -> dict[str, str]:
        """Why `values` with `change` cannot be used, by the names that changed; empty when they can."""
        try:
            self.decode({**values, **change})
        except ConfigError as error:
            named = {name: error.problems[name] for name in change if name in error.problems}
            return named or dict.fromkeys(change, "; ".join(error.problems.values()))
        return {}

    def refusals(
        self, values: Mapping[str, Scalar], base: Mapping[str, Scalar], groups: Groups
    ) -> list[tuple[int, dict[str, str]]]:
        """What must be left out of `values` so a run can start with the rest; empty if all can be used.

        Each group is added to `base` as one. Groups that did not fit are tried again until no more fit: a value may
        need another one, even a later one. Limit: it does not search for the largest possible set.
        """
        if self._fits(values):
            return []
        accepted, waiting, fitted = dict(base), list(groups), True
        while fitted:
            fitted = False
            for group in list(waiting):
                if self._fits({**accepted, **group[1]}):
                    accepted.update(group[1])
                    waiting.remove(group)
                    fitted = True
        return [(revision, self.problems(accepted, change)) for revision, change in waiting]

    def _fits(self, values: Mapping[str, Scalar]) -> bool:
        try:
            self.decode(values)
        except ConfigError:
            return False
        return True


def _document(model: type[BaseModel]) -> dict[str, Any]:
    without_default = [name for name, field in model.model_fields.items() if field.is_required()]
    if without_default:
        raise SettingsError(f"{model.__name__}.{without_default[0]} has no default: give every hyperparameter one")
    try:
        document = model.model_json_schema(by_alias=False)
    except PydanticUserError as error:
        raise SettingsError(f"{model.__name__} has no JSON Schema ({error}): use plain scalar fields") from None
    for name, field in document.get("properties", {}).items():
        check_hyperparameter_name(name)
        if not _is_scalar(field, document.get("$defs", {})):
            raise SettingsError(
                f"{model.__name__}.{name} does not hold one scalar: use a number, text, true, false or null"
            )
        default = model.model_fields[name].default
        if isinstance(default, float) and not math.isfinite(default):
            raise SettingsError(
                f"{model.__name__}.{name} is {default} by default: JSON has finite numbers and null only"
            )
        if default is PydanticUndefined:
            raise SettingsError(
                f"{model.__name__}.{name} gets its default from a function, so ranks could differ: give a plain value"
            )
        if model.model_fields[name].validation_alias is not None:
            raise SettingsError(f"{model.__name__}.{name} has an alias: a hyperparameter has one name, drop the alias")
    return document


def _is_scalar(field: Mapping[str, Any], definitions: Mapping[str, Mapping[str, Any]]) -> bool:
    if "$ref" in field:
        return _is_scalar(definitions.get(str(field["$ref"]).rsplit("/", 1)[-1], {}), definitions)
    options = field.get("anyOf") or field.get("allOf")
    if options:
        return all(_is_scalar(option, definitions) for option in options)
    if "enum" in field or "const" in field:
        return all(not isinstance(choice, (list, dict)) for choice in field.get("enum", [field.get("const")]))
    return field.get("type") in _SCALAR_TYPES


def _problems(error: ValidationError, values: Mapping[str, Scalar]) -> dict[str, str]:
    problems: dict[str, str] = {}
    for detail in error.errors():
        name = str(detail["loc"][0]) if detail["loc"] else ", ".join(values)
        problems.setdefault(name, detail["msg"][:1].lower() + detail["msg"][1:])
    return problems
