"""What every rank has, and what is wanted of it, by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from instep.control._assignments import unknown_name
from instep.control._facts import Facts
from instep.control._load import load
from instep.control._picture import Picture
from instep.control._runs import require_run
from instep.errors import ConfigError
from instep.etcd import Client
from instep.names import check_hyperparameter_name
from instep.protocol.desired import DesiredValue
from instep.protocol.keys import Keys
from instep.protocol.records import format_ranks
from instep.scalar import Scalar, same, shortened
from instep.text import one_line

ValueState = Literal["agreed", "pending", "rejected"]


@dataclass(frozen=True, slots=True)
class Value(Facts):
    """One hyperparameter. `agreed` is what every rank has, `desired` what was last written for it.

    `state` is pending or rejected when the desired value is not the agreed one, and `why` then says what it
    waits for or why it was refused. A desired value that cannot be parsed is given as the text that stands in
    etcd.
    """

    name: str
    state: ValueState
    agreed: Scalar
    has_agreed: bool
    desired: Scalar
    has_desired: bool
    revision: int | None
    """etcd revision of the desired value."""
    fixed: bool
    why: str | None = None


@dataclass(frozen=True, slots=True)
class Values(Facts):
    run: str
    revision: int
    values: tuple[Value, ...]


async def get(client: Client, keys: Keys, name: str | None = None) -> Values:
    """All hyperparameters of a run, or one. Raises RunNotFound, or ConfigError for a name that the run does
    not have.
    """
    if name is not None:
        check_hyperparameter_name(name)
    picture = await load(client, keys, members=True)
    if picture.empty:
        await require_run(client, keys)
    found = values_of(picture)
    if name is not None:
        one = tuple(value for value in found if value.name == name)
        if not one:
            reason = unknown_name(name, (value.name for value in found))
            raise ConfigError(f"{name}: {reason}", problems={name: reason})
        found = one
    return Values(keys.run, picture.revision, found)


def values_of(picture: Picture) -> tuple[Value, ...]:
    """In the order of the schema, then by name; needs members to tell why a value waits."""
    agreed = picture.agreed.values if picture.agreed else {}
    names = dict.fromkeys((*picture.schema.names, *sorted({*agreed, *picture.desired})))
    return tuple(_value(picture, name) for name in names)


def _value(picture: Picture, name: str) -> Value:
    agreed = picture.agreed.values if picture.agreed else {}
    item = picture.desired.get(name)
    state: ValueState = "agreed"
    why = None
    desired: Scalar = None
    if item is not None:
        desired, usable = _parsed(picture, item)
        if not (usable and name in agreed and same(agreed[name], desired)):
            state, why = _why(picture, item)
    return Value(
        name=name,
        state=state,
        agreed=agreed.get(name),
        has_agreed=name in agreed,
        desired=desired,
        has_desired=item is not None,
        revision=item.revision if item else None,
        fixed=picture.schema.is_fixed(name),
        why=why,
    )


def _parsed(picture: Picture, item: DesiredValue) -> tuple[Scalar, bool]:
    try:
        return picture.schema.parse(item.name, item.text), True
    except ValueError:
        return shortened(item.text), False


def _why(picture: Picture, item: DesiredValue) -> tuple[ValueState, str]:
    record = picture.rejected.get(item.name)
    if record is not None and record.revision == item.revision:
        return "rejected", one_line(record.reason)
    plan = picture.open_plan()
    if plan is not None and plan.revision == item.revision:
        return "pending", f"plan {plan.number} is open for step {plan.gate}"
    if not picture.live:
        return "pending", "no worker is alive; the next start of the run takes it"
    if picture.view is None:
        return "pending", "the run is forming; it starts with it"
    missing = picture.ranks_missing()
    if missing:
        return "pending", f"it waits for rank {format_ranks(missing)}, which is missing"
    if plan is not None:
        return "pending", f"it waits for plan {plan.number}, which is open"
    newest = picture.newest_plan
    decision = picture.decisions.get(newest.number) if newest else None
    if newest is not None and newest.revision == item.revision and decision is not None and not decision.commit:
        return "pending", f"plan {newest.number} was aborted ({one_line(decision.reason or '')}); it is planned again"
    return "pending", "it waits for the run's leader to plan it"
