"""Frozen dataclasses as JSON and back, by their type hints. Each hint is resolved once."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Self, TypeVar, Union

_HINTS: dict[Any, dict[str, Any]] = {}
_SCALARS = frozenset({bool, int, float, str, NoneType})
_FORMER_NAMES = {"directive": "course"}
"""Fields by their name until protocol 4: a run that was paused then stays paused."""


class WireError(ValueError):
    """What was received or stored is not what its type says."""


@typing.dataclass_transform(frozen_default=True)
class Document:
    """Base of what is sent or stored: each subclass is a frozen dataclass with the methods of this class.
    `dataclass` would generate them per class, and every import of Instep would take 20 ms longer.

    Fields that are None are left out. Unknown fields are skipped, because a newer version may add some.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        cls.__doc__ = cls.__doc__ or cls.__name__
        dataclass(init=False, repr=False, eq=False, **options)(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        items: tuple[Field[Any], ...] = fields(self)  # type: ignore[arg-type]  # each subclass is a dataclass
        given = dict(zip((item.name for item in items), args, strict=False)) | kwargs
        for item in items:
            value, make = given.pop(item.name, item.default), item.default_factory
            if value is MISSING and callable(make):
                value = make()
            if value is MISSING:
                raise TypeError(f"{item.name} is missing")
            self.__dict__[item.name] = value
        if given:
            raise TypeError(f"{next(iter(given))} is not a field")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Raises ValueError for what is no such document."""

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"{name} cannot be assigned: a document does not change")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash(_values(self))

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in zip(_hints(type(self)), _values(self), strict=True))
        return f"{type(self).__name__}({', '.join(shown)})"

    def encode(self) -> str:
        return json.dumps(to_json(self), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        """Raises ValueError: WireError where the text is JSON, but no such document; UnicodeEncodeError where it has a
        lone surrogate, because such a document can be neither stored nor digested."""
        text = text.decode() if isinstance(text, bytes) else text
        document = from_json(cls, json.loads(text))
        if "\\u" in text:
            document.encode().encode()
        return document

    @classmethod
    def decode_or_none(cls, text: str | bytes | None) -> Self | None:
        """None also for a document that cannot be read: a damaged record must not stop an agent."""
        try:
            return cls.decode(text) if text is not None else None
        except (ValueError, RecursionError):
            return None


D = TypeVar("D", bound=Document)


def to_json(value: Any) -> Any:
    """The value as dicts, lists and scalars."""
    if isinstance(value, Document):
        held = zip(_hints(type(value)), _values(value), strict=True)
        return {name: to_json(item) for name, item in held if item is not None}
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, tuple | list | frozenset) else value


def from_json(kind: type[D], value: object) -> D:
    """Raises WireError, which names the field."""
    try:
        document: D = _read(kind, value)
    except WireError as error:
        raise WireError(f"not a {kind.__name__}: {error}") from None
    return document


class _Meaning(NamedTuple):
    scalars: frozenset[Any]
    origin: Any = None
    """Document, Literal, tuple, frozenset or Mapping, for what is no scalar."""
    args: tuple[Any, ...] = ()


@cache
def _meaning(hint: Any) -> _Meaning:
    """A union is of scalars and at most one other type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, UnionType):
        other = next((item for item in args if item not in _SCALARS), None)
        return _meaning(other)._replace(scalars=_SCALARS & set(args)) if other else _Meaning(_SCALARS & set(args))
    if isinstance(hint, type) and issubclass(hint, Document):
        return _Meaning(frozenset(), Document, (hint,))
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    return _Meaning(_SCALARS & {hint}, Mapping if is_mapping else origin, args)


def _hints(kind: Any) -> dict[str, Any]:
    """The types of the fields, by name, in their order."""
    if kind not in _HINTS:
        hints = typing.get_type_hints(kind)
        _HINTS[kind] = {item.name: hints[item.name] for item in fields(kind)}
    return _HINTS[kind]


def _values(document: Any) -> tuple[Any, ...]:
    return tuple(getattr(document, name) for name in _hints(type(document)))


def _read(hint: Any, value: Any) -> Any:
    scalars, origin, args = _meaning(hint)
    if type(value) in scalars or hint is Any or (origin is Literal and value in args):
        return value
    if type(value) is int and float in scalars and abs(value) < 2**1023:
        return float(value)
    if type(value) is dict and origin is Document:
        return _read_document(args[0], value)
    try:
        if type(value) is dict and origin is Mapping:
            return {args[0](key): _read(args[1], item) for key, item in value.items()}
        if type(value) is list and origin in (tuple, frozenset):
            if ... in args or origin is frozenset:
                return origin([_read(args[0], item) for item in value])
            return tuple(_read(each, item) for each, item in zip(args, value, strict=True))
    except ValueError as error:
        raise error if isinstance(error, WireError) else WireError(f"{value!r:.60}: {error}") from None
    raise WireError(f"{value!r:.60} is not a {getattr(hint, '__name__', hint)}")


def _read_document(kind: Any, value: dict[str, Any]) -> Any:
    given = {}
    for name, hint in _hints(kind).items():
        stored = name if name in value else _FORMER_NAMES.get(name)
        if stored in value:
            try:
                given[name] = _read(hint, value[stored])
            except WireError as error:
                raise WireError(f"{name}: {error}") from None
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise WireError(str(error)) from None
