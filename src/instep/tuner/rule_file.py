"""Reads a rule file (TOML). A bad file gives one sentence with the line and the fix, and arms nothing. Pure."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from instep.errors import SettingsError
from instep.text import one_line
from instep.tuner.rules import RULE_KINDS, Bound, Brakes, Rules, defaults
from instep.tuner.sample import Parameter

_TABLE = re.compile(r"\s*\[\[?(?P<name>[^\]]+)\]\]?\s*(#.*)?$")
_KEY = re.compile(r"\s*(?P<name>[A-Za-z0-9_\-\".' ]+?)\s*=")
_KIND = 'kind = "threshold"'


def read_rules(text: str, parameters: Mapping[str, Parameter] | None = None) -> Rules:
    """The default rules with what the file changes.

    Args:
        text: the file's content. `[rules.NAME]` changes the default rule of this name, or adds one of the `kind` that
            it names; `[brakes]` and `[bounds.HYPERPARAMETER]` change limits.
        parameters: the run's hyperparameters, if they are known: bounds are checked against them.

    Raises SettingsError: one sentence with the line, and how to fix it.
    """
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # a TOMLDecodeError, or a number of too many digits
        reason = str(error)[:1].lower() + str(error)[1:]
        raise SettingsError(f"the rule file is not TOML: {one_line(reason)}") from None
    except RecursionError:
        raise SettingsError("the rule file is not TOML: it is nested too deeply") from None
    lines = _Lines(text)
    try:
        rules = Rules.model_validate_json(json.dumps(_completed(document, lines), default=str))
    except ValidationError as error:
        raise _refused(error, document, lines) from None
    for path, sentence in _contradictions(rules, parameters or {}):
        raise _at(lines, path, sentence)
    return rules


def contradictions(rules: Rules, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
    """How the bounds of the rules contradict the schema of the run, one sentence each."""
    return tuple(sentence for _, sentence in _contradictions(rules, parameters))


def _contradictions(rules: Rules, parameters: Mapping[str, Parameter]) -> list[tuple[tuple[str, ...], str]]:
    found: list[tuple[tuple[str, ...], str]] = []
    for name, bound in rules.bounds.items() if parameters else ():
        path, parameter = ("bounds", name), parameters.get(name)
        if parameter is None:
            found.append((path, f"the run has no hyperparameter {name!r}; it has {', '.join(parameters)}"))
        elif parameter.maximum is not None and bound.min is not None and bound.min > parameter.maximum:
            sentence = f"min {bound.min:g} is above {parameter.maximum:g}, the most that the schema allows for {name}"
            found.append(((*path, "min"), f"{sentence}: lower it"))
        elif parameter.minimum is not None and bound.max is not None and bound.max < parameter.minimum:
            sentence = f"max {bound.max:g} is below {parameter.minimum:g}, the least that the schema allows for {name}"
            found.append(((*path, "max"), f"{sentence}: raise it"))
    return found


def _completed(document: dict[str, Any], lines: _Lines) -> dict[str, Any]:
    """The document with the default rules, and with the kind of each rule that is named like its kind."""
    given = document.get("rules", {})
    if not isinstance(given, dict):
        raise _at(lines, ("rules",), "rules is a table: write [rules.spike] and its settings below")
    rules: dict[str, Any] = {name: rule.model_dump(by_alias=True) for name, rule in defaults().items()}
    for name, table in given.items():
        if not isinstance(table, dict):
            raise _at(lines, ("rules", name), f"a rule is a table: write [rules.{name}] and its settings below")
        kind = table.get("kind", name)
        if not isinstance(kind, str) or kind not in RULE_KINDS:
            hint = _KIND if "kind" not in table else f"one of {', '.join(RULE_KINDS)}"
            where = ("rules", name, "kind") if "kind" in table else ("rules", name)
            raise _at(lines, where, f"there is no kind of rule {kind!r}{_meant(str(kind), RULE_KINDS)}: write {hint}")
        base = rules.get(name, {}) if kind == name else {}
        rules[name] = {**base, **table, "kind": kind}
    return {**document, "rules": rules}


def _refused(error: ValidationError, document: Mapping[str, Any], lines: _Lines) -> SettingsError:
    """One sentence for the first thing that is wrong."""
    detail = min(error.errors(), key=lambda item: lines.of(_path(item["loc"])))
    path = _path(detail["loc"])
    name, given = path[-1], detail.get("input")
    if detail["type"] == "extra_forbidden":
        known = _fields(path, document)
        meant = _meant(name, known)
        return _at(lines, path, f"there is no setting {name!r}{meant}: there are {', '.join(known)}")
    if detail["type"] == "missing":
        return _at(lines, path[:-1], f"{name} is missing: add it to [{'.'.join(path[:-1])}]")
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(given, dict) else f" = {_shown(given)}"
    message = message[:1].lower() + message[1:]
    return _at(lines, path, f"{'.'.join(path)}{shown}: {message.replace('input should', 'it must')}")


def _path(loc: Sequence[int | str]) -> tuple[str, ...]:
    """The path in the file: pydantic puts the kind of a rule behind its name."""
    parts = [str(part) for part in loc]
    if parts[:1] == ["rules"] and len(parts) > 2 and parts[2] in RULE_KINDS:
        del parts[2]
    return tuple(parts) or ("rules",)


def _fields(path: tuple[str, ...], document: Mapping[str, Any]) -> list[str]:
    """The settings that the table of `path` may have."""
    if path[0] == "rules" and len(path) == 3:
        table = document["rules"][path[1]]
        model: Any = RULE_KINDS[table.get("kind", path[1])]
    else:
        model = {"brakes": Brakes, "bounds": Bound}.get(path[0], Rules) if len(path) > 1 else Rules
    return [field.alias or name for name, field in model.model_fields.items()]


def _meant(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    close = get_close_matches(name, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _shown(value: object) -> str:
    text = one_line(str(value))
    return text if len(text) <= 40 else text[:37] + "..."


def _at(lines: _Lines, path: tuple[str, ...], sentence: str) -> SettingsError:
    return SettingsError(f"rule file, line {lines.of(path)}: {one_line(sentence)}")


class _Lines:
    """Finds the line on which a setting is written. tomllib does not say it."""

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        for number, line in enumerate(text.splitlines(), start=1):
            if header := _TABLE.match(line):
                table = _parts(header["name"])
                self._lines.setdefault(table, number)
            elif key := _KEY.match(line):
                self._lines.setdefault((*table, *_parts(key["name"])), number)

    def of(self, path: tuple[str, ...]) -> int:
        """The line of the setting, else of the table that should have it, else the first one."""
        for end in range(len(path), 0, -1):
            if path[:end] in self._lines:
                return self._lines[path[:end]]
            inside = [line for known, line in self._lines.items() if known[:end] == path[:end]]
            if inside:
                return min(inside)
        return 1


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in name.split("."))
