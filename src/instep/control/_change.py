"""Changing hyperparameters: checked against the run's schema first, then written in one txn, or not at all."""

from __future__ import annotations

import getpass
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from instep.control._assignments import check_values
from instep.control._discover import run_names
from instep.control._facts import Facts, ValueChange, changes_between
from instep.control._picture import Picture
from instep.control._runs import run_not_found
from instep.errors import ConfigError, EtcdFull, EtcdUnavailable, SettingsError
from instep.etcd import Client, Compare, Listing, Op, TxnResult
from instep.names import check_hyperparameter_name
from instep.protocol.keys import Keys
from instep.protocol.records import Change
from instep.scalar import Scalar, format_scalar, same
from instep.text import one_line

MAX_TEXT = 1000
"""Characters of a reason, and of an author."""
TRIES = 5


@dataclass(frozen=True, slots=True)
class Written(Facts):
    """A change that is in etcd. `revision` is its place in etcd's order; what wrote it there is `change_id`."""

    run: str
    revision: int
    change_id: str
    author: str
    reason: str | None
    changes: tuple[ValueChange, ...]
    already_agreed: bool
    """Every rank had these values when they were written; a plan that was open then may still change them."""
    live: bool
    """Whether any worker was registered."""
    asked_at_s: float = field(default=0.0, metadata={"json": False})
    """Monotonic time before the write, where the receipt's time starts."""
    epoch: int = field(default=0, metadata={"json": False})
    """The run's epoch at the write: a later one tells that etcd's history has gone back since."""

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
    """Write desired values, given as text (JSON, or bare words for text fields), with who wants them and why.

    They are checked before anything is written, and written only while the schema they were checked against
    stands. They take effect when the run's ranks have agreed: see `follow`. With `create` a run that is not
    there yet is given values to start with. Raises ConfigError with all problems, RunNotFound, or
    EtcdUnavailable, whose `applied_unknown` tells that the write may have happened.
    """
    asked_at_s = monotonic()
    for name in texts:
        check_hyperparameter_name(name)
    change = change_by(author, reason)
    for _ in range(TRIES):
        before = await look(client, keys)
        if before.empty and not create:
            cure = " To give a run that is still to come its first values, use --create."
            raise run_not_found(keys, await run_names(client, keys.namespace), cure=cure)
        written = await write_checked(client, before, texts, change, asked_at_s)
        if written is not None:
            return written
    raise ConfigError(
        f"nothing was written: the schema of {keys.run} changed {TRIES} times while the values were checked; try again"
    )


def change_by(author: str | None, reason: str | None) -> Change:
    """A change of no names yet. Raises SettingsError for a text that is too long."""
    author = _checked_text(author or default_author(), "author")
    reason = _checked_text(reason, "reason") if reason else None
    return Change(id=secrets.token_hex(6), names=(), author=author, reason=reason)


async def write_checked(
    client: Client,
    before: Picture,
    texts: Mapping[str, str],
    change: Change,
    asked_at_s: float,
    guards: tuple[Compare, ...] = (),
) -> Written | None:
    """Check the values against a look at the run and write them; None, and nothing written, when the schema has
    changed since then or a guard does not hold. Raises ConfigError with all problems.
    """
    agreed = before.agreed.values if before.agreed else None
    values = check_values(texts, before.schema, agreed=agreed, live=before.live)
    change = change.model_copy(update={"names": tuple(values)})
    after = await _write(client, before, values, change, guards)
    return _written(after, values, change, asked_at_s) if after is not None else None


async def look(client: Client, keys: Keys) -> Picture:
    """What a change is checked against."""
    ops = [*map(Op.get, (keys.schema, keys.agreed, keys.epoch))]
    ops += [Op.range(keys.members, limit=1), Op.range(keys.root, limit=1)]
    return _picture(keys, await client.txn([], ops))


async def _write(
    client: Client, before: Picture, values: Mapping[str, Scalar], change: Change, guards: tuple[Compare, ...]
) -> Picture | None:
    """The run as it was at the write; None when the schema was no longer the one that the values were checked with."""
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
        return _at(before, revision)
    return _at(_picture(keys, result), result.revision) if result.succeeded else None


async def _settled(client: Client, before: Picture, values: Mapping[str, Scalar], change: Change) -> int | None:
    """The revision of a write whose reply was lost, if it is in etcd; None when that cannot be said."""
    ops = [Op.get(before.keys.change(change.id)), *(Op.get(before.keys.config_of(name)) for name in values)]
    try:
        result = await client.txn([], ops)
    except EtcdUnavailable:
        return None
    kvs = [kv for part in result.results if isinstance(part, Listing) for kv in part.kvs]
    marks = [kv.mod_revision for kv in kvs if kv.key == before.keys.change(change.id)]
    if marks:
        return marks[0]
    # The leader removes the mark when the change is settled; the values then stand alone, all of one new
    # revision.
    texts = {before.keys.config_of(name): format_scalar(value) for name, value in values.items()}
    revisions = {kv.mod_revision for kv in kvs}
    same_write = len(kvs) == len(texts) and len(revisions) == 1 and all(texts[kv.key] == kv.text for kv in kvs)
    return revisions.pop() if same_write and min(revisions) > before.revision else None


def _picture(keys: Keys, result: TxnResult) -> Picture:
    picture = Picture(keys)
    for part in result.results:
        if isinstance(part, Listing):
            picture.put_all(part.kvs)
    return _at(picture, result.revision)


def _at(picture: Picture, revision: int) -> Picture:
    picture.revision = revision
    return picture


def _written(after: Picture, values: Mapping[str, Scalar], change: Change, asked_at_s: float) -> Written:
    agreed = after.agreed.values if after.agreed else {}
    return Written(
        run=after.keys.run,
        revision=after.revision,
        change_id=change.id,
        author=change.author or "",
        reason=change.reason,
        changes=changes_between(values, agreed),
        already_agreed=all(name in agreed and same(agreed[name], value) for name, value in values.items()),
        live=after.live,
        asked_at_s=asked_at_s,
        epoch=after.epoch.number if after.epoch is not None else 0,
    )


def _checked_text(text: str, what: str) -> str:
    cleaned = one_line(text).strip()
    if len(cleaned) > MAX_TEXT:
        raise SettingsError(f"the {what} has {len(cleaned)} characters: {MAX_TEXT} is the most")
    return cleaned
