"""What was changed or commanded, by whom, why, and what became of it: the plans that stand in etcd, and refusals."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from instep.control._checkpoints import FailedSaveFacts, failed_save_of
from instep.control._drift import drift_of_receipts
from instep.control._epochs import EpochFacts, epochs_of
from instep.control._facts import Facts, ValueChange, changes_between
from instep.control._leaders import Leading, leaders_of
from instep.control._load import load, load_receipts
from instep.control._orders import what_of
from instep.control._picture import Picture
from instep.control._runs import require_run
from instep.control._text import format_changes
from instep.errors import Compacted, SettingsError
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import Declined, Plan, PlanKind, Rejected, StartChange, StartOfView
from instep.protocol.transactions import STARTS_KEPT
from instep.scalar import Scalar, parse_scalar
from instep.text import one_line

DEFAULT_LIMIT = 20
MAX_LIMIT = 1000
_RECEIPTS_READ = 20

EntryOutcome = Literal["open", "committed", "applied", "started", "aborted", "rejected", "declined"]
"""open: not decided. committed: decided, not yet applied everywhere. started: made while nobody trained, and a view
started with it. aborted: its last attempt was, and it is planned again if still desired. rejected: refused by the
schema or a worker. declined: a command that was not done."""


@dataclass(frozen=True, slots=True)
class Attempt(Facts):
    """A plan for the same change that was aborted before the one that stands."""

    plan: int
    gate: int
    reason: str


@dataclass(frozen=True, slots=True)
class Entry(Facts):
    """One change, or one command. `step` is the first step run with its values (of a command the one before which all
    ranks did it), as receipts tell, else as agreed; None if not applied.

    `ranks` counts receipts; None when they are too old to be kept or read. `refusal` is why it was aborted, rejected or
    declined; `reason` is what its author said.
    """

    plan: int | None
    outcome: EntryOutcome
    changes: tuple[ValueChange, ...]
    gate: int | None
    step: int | None
    ranks: int | None
    author: str | None
    reason: str | None
    refusal: str | None
    opened_at: str | None
    revision: int
    change_id: str | None
    attempts: tuple[Attempt, ...] = ()
    kind: PlanKind = "config"
    """Of a command what it is; `name` is then the action's, or the checkpoint's to go back to."""
    name: str | None = None
    save: bool | None = None
    """Of a stop: whether a checkpoint is saved first."""
    view: int | None = None
    """The view that started with it; None of what a plan was made of."""
    drift: dict[str, str] = field(default_factory=dict)
    """By hyperparameter, the ranks whose optimizer did not hold it, as far as receipts tell."""
    restored: int | None = None
    """Of a plan that etcd had lost and that was written back by the ranks: the epoch in which that was done."""

    @property
    def what(self) -> str:
        """`lr 3e-4 → 1e-4`, or `act evaluate`."""
        if self.kind == "config":
            return format_changes(self.changes)
        return what_of(self.kind, self.name, save=self.save is not False)


@dataclass(frozen=True, slots=True)
class History(Facts):
    run: str
    revision: int
    entries: tuple[Entry, ...]
    """The newest first."""
    leaders: tuple[Leading, ...] = ()
    """Who has led the run, the newest first."""
    failed_saves: tuple[FailedSaveFacts, ...] = ()
    """The last 20 checkpoints that could not be saved, the newest first."""
    epochs: tuple[EpochFacts, ...] = ()
    """When etcd's history went back, or checkpoints were adopted, the newest first."""


async def history(client: Client, keys: Keys, limit: int = DEFAULT_LIMIT) -> History:
    """The newest `limit` changes and leaders; etcd keeps those of the last 1000 plans, receipts of the last 20, and the
    last 100 leaders.

    Raises RunNotFound. Receipts are read for the newest 50 changes at most.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise SettingsError(f"the limit of {limit} changes is not usable: give 1 to {MAX_LIMIT}")
    picture = await _read(client, keys, limit)
    if picture.empty:
        await require_run(client, keys)
    leaders = await leaders_of(client, keys, limit)
    failed = picture.failed_saves.saves if picture.failed_saves is not None else ()
    saves = tuple(facts for record in reversed(failed) if (facts := failed_save_of(record)) is not None)
    epochs = await epochs_of(client, keys, picture, limit)
    return History(keys.run, picture.revision, entries_of(picture)[:limit], leaders, saves, epochs)


def entries_of(picture: Picture) -> tuple[Entry, ...]:
    """Changes and commands, the newest first; attempts of one are one entry."""
    groups: dict[tuple[int, str | None], list[Plan]] = {}
    for _, plan in sorted(picture.plans.items()):
        groups.setdefault(_wish_of(plan), []).append(plan)
    started = [
        _started(picture, start, change, groups.pop((change.revision, None), []))
        for start in picture.starts.values()
        for change in start.changes
    ]
    entries = [*started, *(_entry(picture, plans) for plans in groups.values())]
    alone: dict[int, list[Rejected]] = {}
    told = {entry.revision for entry in started}
    for record in picture.rejected.values():
        if (record.revision, None) not in groups and record.revision not in told:
            alone.setdefault(record.revision, []).append(record)
    entries += [_rejected(picture, revision, records) for revision, records in alone.items()]
    entries += [
        _declined(command_id, record)
        for command_id, record in picture.declined.items()
        if (record.revision, command_id) not in groups
    ]
    return tuple(sorted(entries, key=lambda entry: _order(picture, entry), reverse=True))


def _order(picture: Picture, entry: Entry) -> tuple[int, int]:
    """What the script changed at a start has no revision: it comes after all that was written before that start."""
    start = picture.starts.get(entry.view or 0)
    if entry.revision or start is None:
        return entry.revision, entry.view or 0
    starts = (other for other in picture.starts.values() if other.view <= start.view)
    earlier = (change.revision for other in starts for change in other.changes)
    plans = (plan.revision for number, plan in picture.plans.items() if number <= start.plan)
    return max((*earlier, *plans), default=0), start.view


async def _read(client: Client, keys: Keys, limit: int) -> Picture:
    """Enough plans for `limit` changes: attempts of one change are several plans, so perhaps not at the first try."""
    plans = 2 * limit
    while True:
        picture = await load(client, keys, plans=plans, receipts=0, starts=STARTS_KEPT)
        if len(picture.plans) < plans or len({_wish_of(plan) for plan in picture.plans.values()}) > limit:
            break
        plans *= 4
    newest = [entry.plan for entry in entries_of(picture)[: min(limit, _RECEIPTS_READ)]]
    with suppress(Compacted):  # a history without counts of receipts is still the history
        await load_receipts(client, picture, [number for number in newest if number is not None], picture.revision)
    return picture


def _wish_of(plan: Plan) -> tuple[int, str | None]:
    """What its attempts have in common: values of one revision are one change, but each command is one of its own."""
    return plan.revision, None if plan.kind == "config" else plan.change_id


def _entry(picture: Picture, plans: list[Plan]) -> Entry:
    plan = plans[-1]
    decision = picture.decisions.get(plan.number)
    steps = picture.steps_applied(plan.number)
    committed = decision is not None and decision.commit
    declined = picture.declined.get(plan.change_id or "") if plan.kind != "config" else None
    refusal = declined.why if declined is not None else None
    if refusal is None and decision is not None and not decision.commit:
        refusal = decision.reason or "no reason was given"
    outcome = "declined" if declined is not None else _outcome(picture, plan)
    return Entry(
        plan=plan.number,
        outcome=outcome,
        changes=_changes(plan.values, plan.previous),
        gate=plan.gate,
        step=(min(steps.values(), default=plan.gate) if outcome == "applied" else None) if committed else None,
        ranks=len(steps) or None,
        author=plan.author,
        reason=plan.reason,
        refusal=one_line(refusal) if refusal is not None else None,
        opened_at=plan.opened_at,
        revision=plan.revision,
        change_id=plan.change_id,
        attempts=tuple(_attempt(picture, earlier) for earlier in plans[:-1]),
        kind=plan.kind,
        name=plan.name,
        save=plan.course is not None and plan.course.save_at is not None if plan.kind == "stop" else None,
        drift=drift_of_receipts(picture, plan.number),
        restored=plan.restored,
    )


def _started(picture: Picture, start: StartOfView, change: StartChange, attempts: list[Plan]) -> Entry:
    """A change made while nobody trained; `attempts` are plans for it that were aborted before that."""
    first = picture.first_steps.get(start.view)
    return Entry(
        plan=None,
        outcome="started",
        changes=changes_between({name: start.values.get(name) for name in change.names}, change.previous),
        gate=None,
        step=first.step if first is not None else None,
        ranks=None,
        author=change.author,
        reason=change.reason,
        refusal=None,
        opened_at=start.at,
        revision=change.revision,
        change_id=change.change_id,
        attempts=tuple(_attempt(picture, earlier) for earlier in attempts),
        view=start.view,
    )


def _outcome(picture: Picture, plan: Plan) -> EntryOutcome:
    decision = picture.decisions.get(plan.number)
    if decision is None:
        return "open"
    if not decision.commit:
        refused: EntryOutcome = "rejected" if plan.kind == "config" else "declined"
        return refused if decision.refused else "aborted"
    # A plan is opened only when the one before it was applied by all, so only the newest can still be under
    # way.
    if picture.newest_plan is not plan or picture.view is None or picture.view.number != plan.view:
        return "applied"
    waiting = picture.ranks() - picture.ranks_left() - picture.steps_applied(plan.number).keys()
    return "committed" if waiting else "applied"


def _attempt(picture: Picture, plan: Plan) -> Attempt:
    decision = picture.decisions.get(plan.number)
    return Attempt(plan.number, plan.gate, one_line((decision.reason if decision else None) or "no reason was given"))


def _changes(values: dict[str, Scalar], previous: dict[str, Scalar]) -> tuple[ValueChange, ...]:
    return tuple(
        ValueChange(name, previous.get(name), value, previous.get(name) is not None) for name, value in values.items()
    )


def _rejected(picture: Picture, revision: int, records: list[Rejected]) -> Entry:
    first = records[0]
    agreed = picture.agreed.values if picture.agreed else {}
    change = picture.changes.get(first.change_id or "")
    values = {record.name: _value(record.value) for record in records}
    return Entry(
        plan=None,
        outcome="rejected",
        changes=_changes(values, {name: agreed.get(name) for name in values}),
        gate=None,
        step=None,
        ranks=None,
        author=first.author,
        reason=change.reason if change else None,
        refusal=one_line(_reasons(records)),
        opened_at=None,
        revision=revision,
        change_id=first.change_id,
    )


def _declined(command_id: str, record: Declined) -> Entry:
    """A command that was never planned."""
    command = record.command
    return Entry(
        plan=None,
        outcome="declined",
        changes=(),
        gate=None,
        step=None,
        ranks=None,
        author=command.author,
        reason=command.reason,
        refusal=one_line(record.why),
        opened_at=None,
        revision=record.revision,
        change_id=command_id,
        kind=command.kind,
        name=command.name,
        save=command.save if command.kind == "stop" else None,
    )


def _reasons(records: Iterable[Rejected]) -> str:
    return "; ".join(f"{record.name}: {record.reason}" for record in records)


def _value(text: str) -> Scalar:
    try:
        return parse_scalar(text)
    except ValueError:
        return text
