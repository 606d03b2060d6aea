"""The next change, from the desired values. Pure, and level-triggered: no put is lost, whenever it arrives.

All keys of one etcd revision are one change: they are planned together or rejected together. If a key is written twice
before it is planned, the later value counts.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from instep.names import MAX_TOTAL_BYTES
from instep.protocol.dry_run import DryRun, Taken
from instep.protocol.records import Change, Rejected, StartChange
from instep.protocol.schema import Schema
from instep.scalar import Scalar, format_scalar, same

MAX_START_CHANGES = 50
MAX_UNKNOWN = 500
"""How many unknown names are read: those that no schema has and the run has not agreed on."""
REJECTED_AT_ONCE = 50
"""Number of rejections after which the rejections of further revisions wait."""
MAX_SUPERSEDED = 50
"""Desired values that the script replaces at one start; the transaction that forms the view records each."""
SUPERSEDED = 'the run was started with prefer="script", and the script has another value'
SCRIPTS_OWN = "the script's own values"
UNSET = "unset while no rank trained"
"""The reason in a run without a schema, whose script declares no values."""
MAX_AUTHOR, MAX_REASON = 200, 500
"""Bounds of the texts in the record of a start, which one transaction writes together with the view."""


@dataclass(frozen=True, slots=True)
class DesiredValue:
    """The text of `config/<name>`, and the revision that wrote it."""

    name: str
    text: str
    revision: int


@dataclass(frozen=True, slots=True)
class StartValues:
    """The values that a fresh view starts with, and the desired values that are rejected."""

    values: dict[str, Scalar]
    rejections: tuple[Rejected, ...] = ()
    dry_run: DryRun | None = None
    """What a worker validates first; None if a worker can refuse nothing."""
    changes: tuple[StartChange, ...] = ()
    """Differences from the values before: desired values by revision, without their authors, and the script's own."""


@dataclass(frozen=True, slots=True)
class NextChange:
    """The oldest change: values to plan, or rejections to record."""

    revision: int
    values: dict[str, Scalar] = field(default_factory=dict)
    rejections: tuple[Rejected, ...] = ()


def next_change(
    desired: Mapping[str, DesiredValue],
    agreed: Mapping[str, Scalar],
    schema: Schema,
    rejected: Mapping[str, Rejected],
) -> NextChange | None:
    """The oldest revision whose values are neither agreed nor rejected; None if there is none."""
    refused: list[Rejected] = []
    for revision, group in _by_revision(desired):
        if any(_is_rejected(item, rejected) for item in group):
            continue
        values, rejections = _judge(group, agreed, schema)
        if values and not refused:
            return NextChange(revision, values=values)
        refused += rejections
        if values or len(refused) >= REJECTED_AT_ONCE:
            break
    return NextChange(refused[0].revision, rejections=tuple(refused)) if refused else None


def considered(desired: Iterable[DesiredValue], known: Collection[str]) -> dict[str, DesiredValue]:
    """The desired values that are read: every known name, and the newest of the others. Misspelled names are rejected,
    and any number of them delays nothing."""
    by_name = {item.name: item for item in desired}
    others = (item for item in by_name.values() if item.name not in known)
    kept = heapq.nlargest(MAX_UNKNOWN, others, key=lambda item: (item.revision, item.name))
    return {item.name: item for item in kept} | {name: by_name[name] for name in known if name in by_name}


def settled_rejections(
    desired: Mapping[str, DesiredValue],
    agreed: Mapping[str, Scalar],
    schema: Schema,
    rejected: Mapping[str, Rejected],
) -> tuple[str, ...]:
    """Names whose recorded rejection is outdated: the value was written again, or has been agreed since."""
    return tuple(
        name
        for name, record in rejected.items()
        if name not in desired
        or desired[name].revision != record.revision
        or (record.by in ("fixed", "script") and _is_agreed(desired[name], agreed, schema))
    )


def pending_revisions(
    desired: Mapping[str, DesiredValue],
    agreed: Mapping[str, Scalar],
    schema: Schema,
    rejected: Mapping[str, Rejected],
) -> frozenset[int]:
    """Revisions of desired values that wait to be planned."""
    return frozenset(desired[name].revision for name in pending_names(desired, agreed, schema, rejected))


def pending_names(
    desired: Mapping[str, DesiredValue],
    agreed: Mapping[str, Scalar],
    schema: Schema,
    rejected: Mapping[str, Rejected],
) -> tuple[str, ...]:
    """Names of desired values that wait to be planned."""
    return tuple(
        item.name
        for item in desired.values()
        if not _is_rejected(item, rejected) and not _is_agreed(item, agreed, schema)
    )


def start_values(
    desired: Mapping[str, DesiredValue],
    agreed: Mapping[str, Scalar] | None,
    schema: Schema,
    rejected: Mapping[str, Rejected],
    *,
    prefer_script: bool = False,
) -> StartValues:
    """The values of a fresh start: desired values over defaults. For a desired value that is not usable, the last
    agreed value counts, or else the default.

    Training must be able to restart unattended even if a desired value is nonsense, so nonsense is skipped, recorded
    and reported, and never fatal. With `prefer_script` the defaults count: desired values that differ are recorded as
    rejected, and are not planned as a change. Limit: of more than 50 such values, the newest count.
    """
    fallback = {name: value for name, value in (agreed or {}).items() if _fits(name, value, schema)}
    if schema.replays is not None:
        return StartValues(schema.defaults())  # the schedule's values; desired values are for a run without a schedule
    held, values, base = {**schema.defaults(), **fallback}, schema.defaults(), schema.defaults()
    superseded = _superseded(desired, schema) if prefer_script else {}
    if prefer_script:
        held, fallback = {**schema.defaults(), **superseded, **fallback}, {}
    rejections = [_rejection(desired[name], SUPERSEDED, "script") for name in superseded]
    taken: list[Taken] = []
    for item in (item for item in desired.values() if item.name not in superseded):
        parsed, rejection = _usable(item, values, schema, rejected.get(item.name))
        # The agreed value is no fallback if it is the very value that cannot be used now.
        if item.name in fallback and not any(same(fallback[item.name], value) for value in parsed):
            base[item.name] = fallback[item.name]
        if rejection is None:
            values[item.name] = parsed[0]
            taken.append(Taken(item.name, parsed[0], item.text, item.revision))
            continue
        rejections.append(rejection)
        if item.name in base:
            values[item.name] = base[item.name]
    dry_run = DryRun(values, base, tuple(taken)) if taken and not schema.any_scalar else None
    changes = (*_changes_to_the_scripts(held, values, taken), *_changes_at_start(taken, held))
    return StartValues(values, tuple(rejections), dry_run, changes)


def _superseded(desired: Mapping[str, DesiredValue], schema: Schema) -> dict[str, Scalar]:
    """The usable desired values that differ from the defaults; the oldest if there are too many."""
    found: dict[str, Scalar] = {}
    defaults = schema.defaults()
    for item in sorted(desired.values(), key=lambda item: (item.revision, item.name)):
        with suppress(ValueError):
            value = schema.parse(item.name, item.text)
            if item.name in defaults and not same(defaults[item.name], value):
                found[item.name] = value
    return dict(itertools.islice(found.items(), MAX_SUPERSEDED))


def _changes_to_the_scripts(
    held: Mapping[str, Scalar], values: Mapping[str, Scalar], taken: Iterable[Taken]
) -> tuple[StartChange, ...]:
    """Values that are the script's again: it is preferred, the value was unset, or the script has changed."""
    others = {item.name for item in taken}
    previous = {
        name: value
        for name, value in sorted(held.items())
        if name not in others and not (name in values and same(values[name], value))
    }
    if not previous:
        return ()
    why = SCRIPTS_OWN if previous.keys() <= values.keys() else UNSET
    return (StartChange(revision=0, names=tuple(previous), previous=previous, reason=why),)


def _changes_at_start(taken: Iterable[Taken], held: Mapping[str, Scalar]) -> tuple[StartChange, ...]:
    """Changes at a start, the oldest first; `held` are the values without them. If there are too many, the oldest form
    one change of revision 0, without an author."""
    news = [item for item in taken if item.name not in held or not same(held[item.name], item.value)]
    revisions = sorted({item.revision for item in news})
    alone = set(revisions if len(revisions) <= MAX_START_CHANGES else revisions[1 - MAX_START_CHANGES :])
    names: dict[int, list[str]] = {}
    for item in sorted(news, key=lambda item: (item.revision, item.name)):
        names.setdefault(item.revision if item.revision in alone else 0, []).append(item.name)
    return tuple(
        StartChange(
            revision=revision,
            names=tuple(group),
            previous={name: held[name] for name in group if name in held},
        )
        for revision, group in names.items()
    )


def signatures(marks: Mapping[int, Change], rejected: Mapping[str, Rejected]) -> dict[int, Change]:
    """Author and reason of each revision: from its mark, or from the rejection, which is kept longer than the mark."""
    recorded = {
        item.revision: Change(id=item.change_id or "", names=(), author=item.author, reason=item.why)
        for item in rejected.values()
        if item.change_id or item.author or item.why
    }
    return {**recorded, **marks}


def signed(changes: Iterable[StartChange], by: Mapping[int, Change]) -> tuple[StartChange, ...]:
    """The changes with author and reason, shortened where they are long."""
    return tuple(_signed(change, by.get(change.revision)) for change in changes)


def signed_rejection(item: Rejected, by: Change | StartChange | None) -> Rejected:
    """The rejection with author and reason of the value, if they are known."""
    if by is None:
        return item
    change_id = by.id or None if isinstance(by, Change) else by.change_id
    return item.model_copy(update={"change_id": change_id, "author": by.author, "why": by.reason})


def _signed(change: StartChange, by: Change | None) -> StartChange:
    if by is None:
        return change
    author, reason = by.author and by.author[:MAX_AUTHOR], by.reason and by.reason[:MAX_REASON]
    return change.model_copy(update={"author": author, "reason": reason, "change_id": by.id or None})


def _usable(
    item: DesiredValue, values: Mapping[str, Scalar], schema: Schema, record: Rejected | None
) -> tuple[tuple[Scalar, ...], Rejected | None]:
    """The value if the schema accepts it, and the rejection if it cannot be used."""
    try:
        value = schema.parse(item.name, item.text)
    except ValueError as error:
        return (), _rejection(item, str(error), "schema")
    lasting = ("worker", "script") if schema.prefers_script else ("worker",)
    if record is not None and record.by in lasting and record.revision == item.revision:
        return (value,), record
    if _total_bytes({**values, item.name: value}) > MAX_TOTAL_BYTES:
        return (value,), _rejection(item, f"all values together would have over {MAX_TOTAL_BYTES} bytes", "schema")
    return (value,), None


def _by_revision(desired: Mapping[str, DesiredValue]) -> list[tuple[int, list[DesiredValue]]]:
    groups: dict[int, list[DesiredValue]] = {}
    for item in sorted(desired.values(), key=lambda item: (item.revision, item.name)):
        groups.setdefault(item.revision, []).append(item)
    return list(groups.items())


def _judge(
    group: list[DesiredValue], agreed: Mapping[str, Scalar], schema: Schema
) -> tuple[dict[str, Scalar], tuple[Rejected, ...]]:
    values: dict[str, Scalar] = {}
    problems: dict[str, Rejected] = {}
    for item in group:
        try:
            value = schema.parse(item.name, item.text)
        except ValueError as error:
            problems[item.name] = _rejection(item, str(error), "schema")
            continue
        if item.name in agreed and same(agreed[item.name], value):
            continue
        if schema.is_fixed(item.name):
            problems[item.name] = _rejection(item, _why_fixed(schema), "fixed")
            continue
        values[item.name] = value
    if not problems and _total_bytes({**agreed, **values}) > MAX_TOTAL_BYTES:
        problems = {
            name: _rejection(item, f"all values together would have over {MAX_TOTAL_BYTES} bytes", "schema")
            for item in group
            if (name := item.name) in values
        }
        return {}, tuple(problems.values())
    if not problems:
        return values, ()
    blame = ", ".join(problems)
    companions = tuple(
        _rejection(item, f"it was written together with {blame}, which was rejected", problems[min(problems)].by)
        for item in group
        if item.name in values
    )
    return {}, (*problems.values(), *companions)


def _why_fixed(schema: Schema) -> str:
    if schema.replays is not None:
        return "the run replays a schedule, so its values come from that file; the next start without replay= reads it"
    return "it is fixed while the run trains; the next start of the run reads it"


def _total_bytes(values: Mapping[str, Scalar]) -> int:
    return sum(len(name) + len(format_scalar(value).encode()) + 8 for name, value in values.items())


def _fits(name: str, value: Scalar, schema: Schema) -> bool:
    if not schema.any_scalar and name not in schema.names:
        return False
    try:
        schema.check(name, value)
    except ValueError:
        return False
    return True


def _is_agreed(item: DesiredValue, agreed: Mapping[str, Scalar], schema: Schema) -> bool:
    try:
        return item.name in agreed and same(agreed[item.name], schema.parse(item.name, item.text))
    except ValueError:
        return False


def _is_rejected(item: DesiredValue, rejected: Mapping[str, Rejected]) -> bool:
    record = rejected.get(item.name)
    return record is not None and record.revision == item.revision


def _rejection(item: DesiredValue, reason: str, by: str) -> Rejected:
    return Rejected.model_validate(
        {"name": item.name, "value": item.text[:200], "revision": item.revision, "reason": reason, "by": by}
    )
