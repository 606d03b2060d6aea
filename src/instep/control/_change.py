"""What an operator writes about a run: desired values, their removal, and the reset of its failures.

Values are checked against the run's schema first, then all are written in one txn, or none.
"""

from __future__ import annotations

import getpass
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from instep.control._cache import RunCache
from instep.control._read import run_not_found
from instep.control._report import JsonReport, ValueChange, all_same, changes_between, format_changes
from instep.control._values import check_values
from instep.errors import ConfigError, EtcdFull, EtcdUnavailable, SettingsError
from instep.etcd import Client, Compare, DeleteResult, KeyValue, Listing, Op
from instep.names import check_hyperparameter_name
from instep.protocol import attempts
from instep.protocol.keys import Keys
from instep.protocol.records import Attempts, Change, Cleared, RankFailure
from instep.scalar import Scalar, format_scalar
from instep.text import one_line

MAX_TEXT = 1000
"""Characters of a reason or an author."""
TRIES = 5


MAX_NAMES = 100
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Written(JsonReport):
    """A change that is in etcd. `revision` is its place in etcd's order, `change_id` its key."""

    run: str
    revision: int
    change_id: str
    author: str
    reason: str | None
    changes: tuple[ValueChange, ...]
    already_agreed: bool
    """Every rank had these values at the write; a plan that was open then may still change them."""
    live: bool
    """Whether any worker was registered."""
    asked_at_s: float = field(default=0.0, metadata={"json": False})
    """Monotonic time before the write: the receipt's duration starts here."""
    epoch: int = field(default=0, metadata={"json": False})
    """The run's epoch at the write: a later one shows that etcd's history has gone back since."""

    @property
    def what(self) -> str:
        return format_changes(self.changes)

    @property
    def values(self) -> dict[str, Scalar]:
        return {change.name: change.after for change in self.changes}


def default_author() -> str:
    """`user@host` of this process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"  # a container's user need not have a name
    return f"{user}@{socket.gethostname()}"


async def set_values(
    client: Client,
    keys: Keys,
    texts: Mapping[str, str],
    *,
    author: str | None = None,
    reason: str | None = None,
    create: bool = False,
    monotonic: Callable[[], float] = time.monotonic,
) -> Written:
    """Write desired values, given as text (JSON, or bare words for text fields), with author and reason.

    They are checked before anything is written, and written only if the schema has not changed since. They take effect
    when the run's ranks have agreed: see `follow`. With `create` they may be written for a run that does not exist yet.
    Raises ConfigError with all problems, RunNotFound, or EtcdUnavailable, whose `applied_unknown` says that the write
    may have happened.
    """
    asked_at_s = monotonic()
    for name in texts:
        check_hyperparameter_name(name)
    change = change_by(author, reason)
    for _ in range(TRIES):
        before = await read_for_change(client, keys)
        if before.empty and not create:
            cure = " To write the first values of a run that does not exist yet, use --create."
            raise await run_not_found(client, keys, cure=cure)
        written = await write_checked(client, before, texts, change, asked_at_s)
        if written is not None:
            return written
    raise ConfigError(
        f"nothing was written: the schema of {keys.run} changed {TRIES} times while the values were checked; try again"
    )


def change_by(author: str | None, reason: str | None) -> Change:
    """A change without names. Raises SettingsError for a text that is too long."""
    author = _checked_text(author or default_author(), "author")
    reason = _checked_text(reason, "reason") if reason else None
    return Change(id=secrets.token_hex(6), names=(), author=author, reason=reason)


async def write_checked(
    client: Client,
    before: RunCache,
    texts: Mapping[str, str],
    change: Change,
    asked_at_s: float,
    guards: tuple[Compare, ...] = (),
) -> Written | None:
    """Check the values against the run as it was read, and write them; None, with nothing written, if the schema has
    changed since or a guard does not hold. Raises ConfigError with all problems.
    """
    agreed = before.agreed.values if before.agreed else None
    values = check_values(texts, before.schema, agreed=agreed, live=before.live)
    change = change.model_copy(update={"names": tuple(values)})
    after = await _write(client, before, values, change, guards)
    return _written(after, values, change, asked_at_s) if after is not None else None


async def read_for_change(client: Client, keys: Keys) -> RunCache:
    """What a change is checked against."""
    ops = [*map(Op.get, (keys.schema, keys.agreed, keys.epoch))]
    ops += [Op.range(keys.members, limit=1), Op.range(keys.root, limit=1)]
    return RunCache.of_txn(keys, await client.txn([], ops))


async def _write(
    client: Client, before: RunCache, values: Mapping[str, Scalar], change: Change, guards: tuple[Compare, ...]
) -> RunCache | None:
    """The run at the write; None if its schema was no longer the one that the values were checked with."""
    keys = before.keys
    puts = [Op.put(keys.config_of(name), format_scalar(value)) for name, value in values.items()]
    puts.append(Op.put(keys.change(change.id), change.encode()))
    reads = [Op.get(keys.agreed), Op.get(keys.epoch), Op.range(keys.members, limit=1)]
    try:
        same_schema = Compare.mod_revision(keys.schema, "==", before.schema_revision)
        result = await client.txn([same_schema, *guards], [*puts, *reads])
    except (EtcdFull, EtcdUnavailable) as error:
        revision = await _settled(client, before, values, change) if error.applied_unknown else None
        if revision is None:
            raise
        before.revision = revision
        return before
    return RunCache.of_txn(keys, result) if result.succeeded else None


async def _settled(client: Client, before: RunCache, values: Mapping[str, Scalar], change: Change) -> int | None:
    """The revision of a write whose reply was lost, if etcd holds it; None when that is unknown."""
    ops = [Op.get(before.keys.change(change.id)), *(Op.get(before.keys.config_of(name)) for name in values)]
    try:
        result = await client.txn([], ops)
    except EtcdUnavailable:
        return None
    kvs = [kv for part in result.results if isinstance(part, Listing) for kv in part.kvs]
    marks = [kv.mod_revision for kv in kvs if kv.key == before.keys.change(change.id)]
    if marks:
        return marks[0]
    # The leader deletes the mark when the change is settled. The values then have one new revision.
    texts = {before.keys.config_of(name): format_scalar(value) for name, value in values.items()}
    revisions = {kv.mod_revision for kv in kvs}
    same_write = len(kvs) == len(texts) and len(revisions) == 1 and all(texts[kv.key] == kv.text for kv in kvs)
    return revisions.pop() if same_write and min(revisions) > before.revision else None


def _written(after: RunCache, values: Mapping[str, Scalar], change: Change, asked_at_s: float) -> Written:
    agreed = after.agreed.values if after.agreed else {}
    return Written(
        run=after.keys.run,
        revision=after.revision,
        change_id=change.id,
        author=change.author or "",
        reason=change.reason,
        changes=changes_between(values, agreed),
        already_agreed=all_same(values, agreed),
        live=after.live,
        asked_at_s=asked_at_s,
        epoch=after.epoch.number if after.epoch is not None else 0,
    )


def _checked_text(text: str, what: str) -> str:
    cleaned = one_line(text).strip()
    if len(cleaned) > MAX_TEXT:
        raise SettingsError(f"the {what} has {len(cleaned)} characters: {MAX_TEXT} is the most")
    return cleaned


@dataclass(frozen=True, slots=True)
class Unset(JsonReport):
    """`names` had a desired value and have none now; `without` had none before either."""

    run: str
    revision: int
    names: tuple[str, ...]
    without: tuple[str, ...]


async def unset_values(client: Client, keys: Keys, names: Sequence[str]) -> Unset:
    """Delete the desired values of `names`. Ranks that train keep the agreed values; the next start of all ranks uses
    the script's own.

    Raises RunNotFound, ConfigError for more than 100 names, SettingsError for an invalid name, and EtcdUnavailable,
    whose `applied_unknown` says that it may have happened: repeat it then.
    """
    wanted = tuple(dict.fromkeys(check_hyperparameter_name(name) for name in names))
    if len(wanted) > MAX_NAMES:
        raise ConfigError(f"nothing was deleted: {len(wanted)} names are more than the {MAX_NAMES} of one command")
    ops = [Op.range(keys.root, limit=1), *(Op.delete(keys.config_of(name)) for name in wanted)]
    result = await client.txn([], ops)
    anything, *deleted = result.results
    if isinstance(anything, Listing) and not anything.kvs:
        raise await run_not_found(client, keys)
    counts = (part.deleted if isinstance(part, DeleteResult) else 0 for part in deleted)
    gone = tuple(name for name, count in zip(wanted, counts, strict=True) if count)
    return Unset(keys.run, result.revision, gone, tuple(name for name in wanted if name not in gone))


@dataclass(frozen=True, slots=True)
class AttemptsReport(JsonReport):
    """`limit` is the lowest limit of restarts among the live workers; None for no limit. `failures` are the last 5, the
    newest first; `by_cause` counts all."""

    count: int
    limit: int | None
    by_cause: dict[str, int]
    failures: tuple[RankFailure, ...]

    @property
    def causes(self) -> str:
        return attempts.causes(Attempts(counts=self.by_cause))


@dataclass(frozen=True, slots=True)
class WasReset(JsonReport):
    """What was counted before the reset. `revision` is that of the write, or of the read if nothing was written."""

    run: str
    revision: int
    before: AttemptsReport
    author: str
    reason: str | None


def attempts_of(cache: RunCache) -> AttemptsReport | None:
    """None if no failure is counted; needs the members to know the limit."""
    given = (item.member.max_restarts for item in cache.members.values())
    limit = min((one for one in given if one is not None), default=None)
    return _report(cache.attempts, limit) if cache.attempts is not None and cache.attempts.total else None


async def reset(client: Client, keys: Keys, *, author: str | None = None, reason: str | None = None) -> WasReset:
    """Reset the count of the run's failures: it may be restarted as often as a new run. Processes need no restart.

    Raises RunNotFound, SettingsError for a text that is too long, and EtcdUnavailable, whose `applied_unknown` says
    that it may have happened: repeat it then.
    """
    by = change_by(author, reason)
    for _ in range(TRIES):
        found, revision = await _counted(client, keys)
        before = Attempts.decode_or_none(found.value) if found is not None else None
        counted = _report(before or Attempts(), None)
        was = WasReset(keys.run, revision, counted, by.author or "", by.reason)
        if found is None or (before is not None and not before.total):
            return was
        at = datetime.now(UTC).isoformat(timespec="seconds")
        cleared = Cleared(failures=counted.count, author=by.author, reason=by.reason, at=at)
        after = Attempts(view=before.view if before is not None else 0, cleared=cleared)
        same = Compare.mod_revision(keys.attempts, "==", found.mod_revision)
        result = await client.txn([same], [Op.put(keys.attempts, after.encode())])
        if result.succeeded:
            return WasReset(keys.run, result.revision, counted, by.author or "", by.reason)
    raise ConfigError(f"nothing was reset: {keys.run} failed {TRIES} times while it was read; try again")


async def _counted(client: Client, keys: Keys) -> tuple[KeyValue | None, int]:
    """The record of failures, and the revision of the read. Raises RunNotFound."""
    result = await client.txn([], [Op.get(keys.attempts), Op.range(keys.root, limit=1)])
    found, anything = (part.kvs for part in result.results if isinstance(part, Listing))
    if not anything:
        raise await run_not_found(client, keys)
    return (found[0] if found else None), result.revision


def _report(counted: Attempts, limit: int | None) -> AttemptsReport:
    last = reversed(counted.failures[-_SHOWN:])
    return AttemptsReport(counted.total, limit, dict(counted.counts), tuple(last))
