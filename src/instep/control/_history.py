"""The history of a run: changes and commands with their results, its leaders, and its epochs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from instep.command_kinds import COMMAND_KINDS, describe
from instep.control._cache import RunCache
from instep.control._checkpoints import FailedSaveReport, failed_save_of
from instep.control._progress import NO_REASON, drift_of_receipts, progress_of_plan, request_of
from instep.control._read import load, load_receipts
from instep.control._report import JsonReport, ValueChange, changes_between, format_changes, planned_changes
from instep.errors import Compacted, SettingsError
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import CAME_FIRST, Declined, Epoch, Plan, Rejected, StartChange, StartOfView, Term
from instep.protocol.recovery import explain
from instep.protocol.transactions import EPOCHS_KEPT, STARTS_KEPT, TERMS_KEPT
from instep.scalar import Scalar, parse_scalar
from instep.text import one_line

DEFAULT_LIMIT = 20
MAX_LIMIT = 1000
_RECEIPTS_READ = 20
UNKNOWN = "unknown"
"""The kind of a command that could not be read."""

EntryOutcome = Literal["open", "committed", "applied", "started", "aborted", "rejected", "declined"]
"""open: not decided. committed: decided, not yet applied everywhere. started: made while no rank trained, and a view
started with it. aborted: its last attempt was aborted; it is planned again if it is still desired. rejected: refused by
the schema or a worker. declined: a command that was not carried out."""


@dataclass(frozen=True, slots=True)
class Attempt(JsonReport):
    """An earlier plan for the same change, which was aborted."""

    plan: int
    gate: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry(JsonReport):
    """One change, or one command. `step` is the first step run with its values (for a command the one before which all
    ranks carried it out), from the receipts if there are any, else as agreed; None if it was not applied.

    `ranks` counts receipts; None if they are too old to be kept or read. `refusal` is why it was aborted, rejected or
    declined; `reason` is what its author wrote.
    """

    plan: int | None = None
    outcome: EntryOutcome
    changes: tuple[ValueChange, ...] = ()
    gate: int | None = None
    step: int | None = None
    ranks: int | None = None
    author: str | None
    reason: str | None
    refusal: str | None = None
    opened_at: str | None = None
    revision: int
    change_id: str | None
    attempts: tuple[Attempt, ...] = ()
    kind: str = "config"
    """The command's name; `config` for a change, `unknown` for a command that could not be read. `name` is the action,
    or the checkpoint to go back to."""
    name: str | None = None
    save: bool | None = None
    """For a stop: whether a checkpoint is saved first."""
    view: int | None = None
    """The view that started with it; None for what a plan was made for."""
    drift: dict[str, str] = field(default_factory=dict)
    """By hyperparameter, the ranks whose optimizer did not hold it, according to the receipts."""
    restored: int | None = None
    """For a plan that etcd had lost and the ranks wrote back: the epoch in which they did."""

    @property
    def what(self) -> str:
        return what_of(self.changes, self.kind, self.name, self.save)


@dataclass(frozen=True, slots=True)
class HistoryReport(JsonReport):
    run: str
    revision: int
    entries: tuple[HistoryEntry, ...]
    """The newest first."""
    leaders: tuple[TermReport, ...] = ()
    """The leaders of the run, the newest first."""
    failed_saves: tuple[FailedSaveReport, ...] = ()
    """The last 20 checkpoints that could not be saved, the newest first."""
    epochs: tuple[EpochReport, ...] = ()
    """When etcd's history went back, or checkpoints were adopted, the newest first."""


async def history(client: Client, keys: Keys, limit: int = DEFAULT_LIMIT) -> HistoryReport:
    """The newest `limit` changes and leaders. etcd keeps those of the last 1000 plans, receipts of the last 20, and the
    last 100 leaders.

    Raises RunNotFound. Receipts are read for the newest 20 changes at most.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise SettingsError(f"the limit of {limit} changes is not usable: give 1 to {MAX_LIMIT}")
    cache = await _read(client, keys, limit)
    leaders = await leaders_of(client, keys, limit)
    failed = cache.failed_saves.saves if cache.failed_saves is not None else ()
    saves = tuple(report for record in reversed(failed) if (report := failed_save_of(record)) is not None)
    epochs = await epochs_of(client, keys, cache, limit)
    return HistoryReport(keys.run, cache.revision, entries_of(cache)[:limit], leaders, saves, epochs)


def entries_of(cache: RunCache) -> tuple[HistoryEntry, ...]:
    """Changes and commands, the newest first; the attempts of one are one entry."""
    groups: dict[tuple[int, str | None], list[Plan]] = {}
    for _, plan in sorted(cache.plans.items()):
        groups.setdefault(request_of(plan), []).append(plan)
    started = [
        _started(cache, start, change, groups.pop((change.revision, None), []))
        for start in cache.starts.values()
        for change in start.changes
    ]
    entries = [*started, *(_entry(cache, plans) for plans in groups.values())]
    alone: dict[int, list[Rejected]] = {}
    listed = {entry.revision for entry in started}
    for record in cache.rejected.values():
        if (record.revision, None) not in groups and record.revision not in listed:
            alone.setdefault(record.revision, []).append(record)
    entries += [_rejected(cache, revision, records) for revision, records in alone.items()]
    entries += [
        _declined(command_id, record)
        for command_id, record in cache.declined.items()
        if (record.revision, command_id) not in groups
    ]
    return tuple(sorted(entries, key=lambda entry: _order(cache, entry), reverse=True))


def what_of(changes: tuple[ValueChange, ...], kind: str, name: str | None, save: bool | None) -> str:
    """`lr 3e-4 → 1e-4`, or `act evaluate`."""
    if kind == UNKNOWN:
        return "unknown command"
    return format_changes(changes) if kind == "config" else describe(kind, name, save=save is not False)


def saves_first(plan: Plan) -> bool | None:
    """Whether a checkpoint is saved first, for a command with that option; None for every other plan."""
    kind = COMMAND_KINDS.get(plan.kind)
    if kind is None or "save" not in kind.options:
        return None
    return plan.directive is not None and plan.directive.save_at is not None


def _order(cache: RunCache, entry: HistoryEntry) -> tuple[int, int]:
    """What the script changed at a start has no revision: it follows everything written before that start."""
    start = cache.starts.get(entry.view or 0)
    if entry.revision or start is None:
        return entry.revision, entry.view or 0
    starts = (other for other in cache.starts.values() if other.view <= start.view)
    earlier = (change.revision for other in starts for change in other.changes)
    plans = (plan.revision for number, plan in cache.plans.items() if number <= start.plan)
    return max((*earlier, *plans), default=0), start.view


async def _read(client: Client, keys: Keys, limit: int) -> RunCache:
    """Enough plans for `limit` changes. A change can have several plans, one per attempt, so this may take several
    reads."""
    plans = 2 * limit
    while True:
        cache = await load(client, keys, plans=plans, receipts=0, starts=STARTS_KEPT)
        if len(cache.plans) < plans or len({request_of(plan) for plan in cache.plans.values()}) > limit:
            break
        plans *= 4
    newest = [entry.plan for entry in entries_of(cache)[: min(limit, _RECEIPTS_READ)]]
    with suppress(Compacted):  # a history without counts of receipts is still useful
        await load_receipts(client, cache, [number for number in newest if number is not None])
    return cache


def _entry(cache: RunCache, plans: list[Plan]) -> HistoryEntry:
    plan = plans[-1]
    decision = cache.decisions.get(plan.number)
    steps = cache.steps_applied(plan.number)
    declined = cache.declined.get(plan.change_id or "") if plan.kind != "config" else None
    refusal = declined.why if declined is not None else None
    if refusal is None and decision is not None and not decision.commit:
        refusal = decision.reason or NO_REASON
    outcome = "declined" if declined is not None else _outcome(cache, plan)
    return HistoryEntry(
        plan=plan.number,
        outcome=outcome,
        changes=planned_changes(plan.values, plan.previous),
        gate=plan.gate,
        step=min(steps.values(), default=plan.gate) if outcome == "applied" else None,
        ranks=len(steps) or None,
        author=plan.author,
        reason=plan.reason,
        refusal=one_line(refusal) if refusal is not None else None,
        opened_at=plan.opened_at,
        revision=plan.revision,
        change_id=plan.change_id,
        attempts=tuple(_attempt(cache, earlier) for earlier in plans[:-1]),
        kind=plan.kind,
        name=plan.name,
        save=saves_first(plan),
        drift=drift_of_receipts(cache, plan.number),
        restored=plan.restored,
    )


def _started(cache: RunCache, start: StartOfView, change: StartChange, attempts: list[Plan]) -> HistoryEntry:
    """A change made while no rank trained; `attempts` are plans for it that were aborted before that."""
    first = cache.first_steps.get(start.view)
    return HistoryEntry(
        outcome="started",
        changes=changes_between({name: start.values.get(name) for name in change.names}, change.previous),
        step=first.step if first is not None else None,
        author=change.author,
        reason=change.reason,
        opened_at=start.at,
        revision=change.revision,
        change_id=change.change_id,
        attempts=tuple(_attempt(cache, earlier) for earlier in attempts),
        view=start.view,
    )


def _outcome(cache: RunCache, plan: Plan) -> EntryOutcome:
    decision = cache.decisions.get(plan.number)
    if decision is None:
        return "open"
    if not decision.commit:
        refused: EntryOutcome = "rejected" if plan.kind == "config" else "declined"
        return refused if decision.refused else "aborted"
    # A plan is opened only after all ranks have applied the one before, so only the newest can be in progress.
    if cache.newest_plan is not plan or cache.view is None or cache.view.number != plan.view:
        return "applied"
    return "committed" if progress_of_plan(cache, plan, 1).stage == "committed" else "applied"


def _attempt(cache: RunCache, plan: Plan) -> Attempt:
    decision = cache.decisions.get(plan.number)
    return Attempt(plan.number, plan.gate, one_line((decision.reason if decision else None) or NO_REASON))


def _rejected(cache: RunCache, revision: int, records: list[Rejected]) -> HistoryEntry:
    first = records[0]
    agreed = cache.agreed.values if cache.agreed else {}
    change = cache.changes.get(first.change_id or "")
    return HistoryEntry(
        outcome="rejected",
        changes=planned_changes({record.name: _value(record.value) for record in records}, agreed),
        author=first.author,
        reason=change.reason if change else None,
        refusal=one_line(_reasons(records)),
        revision=revision,
        change_id=first.change_id,
    )


def _declined(command_id: str, record: Declined) -> HistoryEntry:
    """A command that was never planned."""
    command = record.command
    return HistoryEntry(
        outcome="declined",
        author=command.author if command else None,
        reason=command.reason if command else None,
        refusal=one_line(record.why),
        revision=record.revision,
        change_id=command_id,
        kind=command.kind if command else UNKNOWN,
        name=command.name if command else None,
        save=command.save if command and "save" in COMMAND_KINDS[command.kind].options else None,
    )


def _reasons(records: Iterable[Rejected]) -> str:
    return "; ".join(f"{record.name}: {record.reason}" for record in records)


def _value(text: str) -> Scalar:
    try:
        return parse_scalar(text)
    except ValueError:
        return text


@dataclass(frozen=True, slots=True)
class TermReport(JsonReport):
    """One term of leadership, from `since` (wall clock of the leader's host) to the next one's.

    `former_rank` and `former_host` led before, None if the history does not say; `why` is how that term ended, None if
    it is unknown.
    """

    term: int
    rank: int
    node: str
    host: str
    token: int
    since: str | None
    former_rank: int | None
    former_host: str | None
    why: str | None

    @property
    def at_start(self) -> bool:
        """Whether it only replaced another rank of its node while the ranks of the run were starting."""
        return self.why == CAME_FIRST


async def leaders_of(client: Client, keys: Keys, limit: int) -> tuple[TermReport, ...]:
    """The newest `limit` leaders, the newest first; etcd keeps the last 100."""
    listing = await client.range(keys.terms, newest_first=True, limit=min(limit, TERMS_KEPT) + 1)
    terms = {term.term: term for item in listing.kvs if (term := Term.decode_or_none(item.value)) is not None}
    newest = sorted(terms, reverse=True)[:limit]
    return tuple(_leading(terms[number], terms.get(number - 1)) for number in newest)


def _leading(term: Term, former: Term | None) -> TermReport:
    return TermReport(
        term=term.term,
        rank=term.rank,
        node=term.node,
        host=term.host or term.node,
        token=term.token,
        since=term.at,
        former_rank=former.rank if former else None,
        former_host=(former.host or former.node) if former else None,
        why=one_line(term.why) if term.why else None,
    )


@dataclass(frozen=True, slots=True)
class EpochReport(JsonReport):
    """One epoch of a run: it begins when etcd's history is found to have gone back, or when checkpoints are adopted.

    While it is not `settled`, changes wait; `problem` says why it cannot be settled. `sentence` says what happened,
    what it means for training, and what to do.
    """

    number: int
    why: str
    at: str | None
    """Wall clock of the host that noticed it."""
    before: int | None
    """The highest revision of etcd that was seen before; None if that is unknown."""
    after: int | None
    """The revision at which it was noticed."""
    author: str | None
    """The author of an adoption; None if etcd's history went back."""
    settled: bool
    problem: str | None
    written_back: tuple[int, ...]
    """The plans that etcd had lost and that the ranks wrote back, as far as etcd still keeps them."""
    sentence: str


def epoch_of(cache: RunCache) -> EpochReport | None:
    """The run's epoch now; None in the first one."""
    return _epoch(cache.epoch, cache) if cache.epoch is not None else None


async def epochs_of(client: Client, keys: Keys, cache: RunCache, limit: int) -> tuple[EpochReport, ...]:
    """The newest `limit` epochs, the newest first; etcd keeps the last 100."""
    listing = await client.range(keys.epochs, newest_first=True, limit=min(limit, EPOCHS_KEPT))
    epochs = [epoch for item in listing.kvs if (epoch := Epoch.decode_or_none(item.value)) is not None]
    return tuple(_epoch(epoch, cache) for epoch in sorted(epochs, key=lambda epoch: epoch.number, reverse=True))


def _epoch(epoch: Epoch, cache: RunCache) -> EpochReport:
    restored = {number for number, plan in cache.plans.items() if plan.restored == epoch.number}
    if cache.agreed is not None and cache.agreed.restored == epoch.number:
        restored.add(cache.agreed.plan)
    back = tuple(sorted(restored))
    named = ", ".join(map(str, back))
    restored_too = f"; written back: {'plan' if len(back) == 1 else 'plans'} {named}" if back else ""
    return EpochReport(
        number=epoch.number,
        why=one_line(epoch.why),
        at=epoch.at,
        before=epoch.before or None,
        after=epoch.after,
        author=epoch.author,
        settled=epoch.settled,
        problem=one_line(epoch.problem) if epoch.problem is not None and not epoch.settled else None,
        written_back=back,
        sentence=explain(epoch) + restored_too,
    )
