"""How often a run has failed since it ended cleanly, and letting it start again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from instep.control._change import TRIES, change_by
from instep.control._discover import run_names
from instep.control._facts import Facts
from instep.control._picture import Picture
from instep.control._runs import run_not_found
from instep.errors import ConfigError
from instep.etcd import Client, Compare, KeyValue, Listing, Op
from instep.protocol import attempts
from instep.protocol.keys import Keys
from instep.protocol.records import Attempts, Cleared, Failure

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class FailureFacts(Facts):
    view: int
    rank: int
    host: str
    cause: str
    text: str | None
    at: str | None


@dataclass(frozen=True, slots=True)
class AttemptsFacts(Facts):
    """`limit` is the fewest restarts that a worker which is alive allows; None for no limit. `failures` are the last
    5, the newest first; `by_cause` counts all."""

    count: int
    limit: int | None
    by_cause: dict[str, int]
    failures: tuple[FailureFacts, ...]

    @property
    def causes(self) -> str:
        return attempts.causes(Attempts(counts=self.by_cause))


@dataclass(frozen=True, slots=True)
class WasReset(Facts):
    """What was counted before, and is no more; `revision` is that of the write, or of the reading without one."""

    run: str
    revision: int
    before: AttemptsFacts
    author: str
    reason: str | None


def attempts_of(picture: Picture) -> AttemptsFacts | None:
    """None where no failure is counted; the limit is known where members have been read."""
    given = (item.member.max_restarts for item in picture.members.values())
    limit = min((one for one in given if one is not None), default=None)
    return _facts(picture.attempts, limit) if picture.attempts is not None and picture.attempts.total else None


async def reset(client: Client, keys: Keys, *, author: str | None = None, reason: str | None = None) -> WasReset:
    """Forget the run's failures, so that it may be restarted as often as at first. Nothing need be restarted for it.

    Raises RunNotFound, SettingsError for a text that is too long, and EtcdUnavailable, whose `applied_unknown` tells
    that it may have happened: do it again then.
    """
    by = change_by(author, reason)
    for _ in range(TRIES):
        found, revision = await _look(client, keys)
        before = Attempts.decode_or_none(found.value) if found is not None else None
        told = _facts(before or Attempts(), None)
        was = WasReset(keys.run, revision, told, by.author or "", by.reason)
        if found is None or (before is not None and not before.total):
            return was
        at = datetime.now(UTC).isoformat(timespec="seconds")
        cleared = Cleared(failures=told.count, author=by.author, reason=by.reason, at=at)
        after = Attempts(view=before.view if before is not None else 0, cleared=cleared)
        same = Compare.mod_revision(keys.attempts, "==", found.mod_revision)
        result = await client.txn([same], [Op.put(keys.attempts, after.encode())])
        if result.succeeded:
            return WasReset(keys.run, result.revision, told, by.author or "", by.reason)
    raise ConfigError(f"nothing was reset: {keys.run} failed {TRIES} times while it was looked at; try again")


async def _look(client: Client, keys: Keys) -> tuple[KeyValue | None, int]:
    """What is counted, and the revision of the reading. Raises RunNotFound."""
    result = await client.txn([], [Op.get(keys.attempts), Op.range(keys.root, limit=1)])
    counted, anything = (part.kvs for part in result.results if isinstance(part, Listing))
    if not anything:
        raise run_not_found(keys, await run_names(client, keys.namespace))
    return (counted[0] if counted else None), result.revision


def _facts(counted: Attempts, limit: int | None) -> AttemptsFacts:
    last = reversed(counted.failures[-_SHOWN:])
    return AttemptsFacts(counted.total, limit, dict(counted.counts), tuple(map(_failure, last)))


def _failure(failure: Failure) -> FailureFacts:
    return FailureFacts(failure.view, failure.rank, failure.host, failure.cause, failure.text, failure.at)
