"""The committed checkpoints of a run, and the registry that lists them: register and remove records of checkpoints.

Their files are never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from instep.control._cache import RunCache, Saved
from instep.control._change import TRIES, change_by
from instep.control._read import load, require_run
from instep.control._report import JsonReport
from instep.errors import CheckpointError, ConfigError
from instep.etcd import Client, Op
from instep.protocol import checkpoints as registry
from instep.protocol.checkpoints import CheckpointReads
from instep.protocol.keys import Keys
from instep.protocol.records import Epoch, FailedSave, Manifest, Pointer
from instep.protocol.transactions import raise_epoch
from instep.recipes.token import MAX_EPOCH, epoch_of, make_token
from instep.text import one_line

_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class CheckpointReport(JsonReport):
    """A committed checkpoint. `saved_by` is the rank, `token` its fencing token; `path` is the path on its host.

    `latest` marks the one that a restart resumes from, if its ranks can verify it. `committed_at` is the wall clock of
    the saver's host, for people only.
    """

    id: str
    step: int
    path: str
    saved_by: int
    host: str
    node: str
    token: int
    committed_at: str
    duration_s: float
    bytes: int
    files: int
    layout: str
    world_size: int
    view: int
    latest: bool


@dataclass(frozen=True, slots=True)
class FailedSaveReport(JsonReport):
    """A checkpoint that could not be saved, while training continued. `at` is the wall clock of the saver's host."""

    step: int
    rank: int
    host: str
    reason: str
    at: str | None


@dataclass(frozen=True, slots=True)
class CheckpointsReport(JsonReport):
    run: str
    revision: int
    checkpoints: tuple[CheckpointReport, ...]
    """First the one that a start resumes from, then the newest commit."""


async def checkpoints(client: Client, keys: Keys) -> CheckpointsReport:
    """All committed checkpoints that are kept, at one revision. Raises RunNotFound."""
    cache = await load(client, keys, plans=1, receipts=0, checkpoints=True)
    return CheckpointsReport(keys.run, cache.revision, checkpoints_of(cache.saved.values(), cache.latest))


def checkpoints_of(saved: Iterable[Saved], latest: Pointer | None) -> tuple[CheckpointReport, ...]:
    newest = latest.id if latest is not None else ""

    def age(item: Saved) -> tuple[bool, int, int]:
        return item.manifest.id == newest, item.revision, item.manifest.step  # others may have been registered since

    by_age = sorted(saved, key=age, reverse=True)
    return tuple(checkpoint_of(item, latest) for item in by_age)


def failed_save_of(failed: FailedSave | None) -> FailedSaveReport | None:
    if failed is None:
        return None
    return FailedSaveReport(failed.step, failed.rank, one_line(failed.host), one_line(failed.text), failed.at)


def newest_of(cache: RunCache) -> CheckpointReport | None:
    """The checkpoint that the pointer names."""
    saved = cache.saved.get(cache.latest.id) if cache.latest is not None else None
    return checkpoint_of(saved, cache.latest) if saved is not None else None


def checkpoint_of(saved: Saved, latest: Pointer | None) -> CheckpointReport:
    manifest = saved.manifest
    return CheckpointReport(
        id=manifest.id,
        step=manifest.step,
        path=manifest.path,
        saved_by=manifest.rank,
        host=manifest.host,
        node=manifest.node,
        token=manifest.token,
        committed_at=manifest.committed_at,
        duration_s=manifest.duration_s,
        bytes=manifest.bytes,
        files=manifest.files,
        layout=manifest.layout,
        world_size=manifest.world_size,
        view=manifest.view,
        latest=latest is not None and latest.id == manifest.id,
    )


@dataclass(frozen=True, slots=True)
class Adopted(JsonReport):
    """`adopted` are the ids of checkpoints that this call registered, `known` of those that were registered already.
    `latest` is the one that a start resumes from now. `epoch` is the run's new epoch, None if tokens rise without it.
    """

    run: str
    adopted: tuple[str, ...]
    known: tuple[str, ...]
    latest: str | None
    epoch: int | None


@dataclass(frozen=True, slots=True)
class Forgotten(JsonReport):
    """`latest` is the checkpoint that a start resumes from now, None for none."""

    run: str
    forgotten: tuple[str, ...]
    latest: str | None


async def adopt(client: Client, keys: Keys, records: Sequence[Manifest], *, author: str | None = None) -> Adopted:
    """Register checkpoints that etcd has no record of. `records` are made from their directories.

    A start then resumes from the newest. If etcd would issue tokens below theirs (it was lost, or restored from a
    backup), the run's epoch rises first, which makes later checkpoints count as newer. A repeated call changes nothing.
    Raises CheckpointError if epochs are used up, and EtcdUnavailable, whose `applied_unknown` says that some may be
    registered: repeat it then.
    """
    manifests = sorted(records, key=lambda item: (item.token, item.step))
    by = change_by(author, None)
    highest = manifests[-1].token if manifests else 0
    known = {item.key for item in (await client.range(keys.checkpoints)).kvs}
    missing = [item for item in manifests if keys.checkpoint(item.id) not in known]
    epoch = await _raise_epoch(client, keys, highest, by.author) if missing else None
    adopted = []
    for manifest in missing:
        if await _adopt_one(client, keys, manifest):
            adopted.append(manifest.id)
    known_before = tuple(item.id for item in manifests if item.id not in adopted)
    return Adopted(keys.run, tuple(adopted), known_before, await _latest(client, keys), epoch)


async def forget(client: Client, keys: Keys, ids: Iterable[str] = (), *, everything: bool = False) -> Forgotten:
    """Remove the records of checkpoints: no start resumes from them. If the newest is removed, the checkpoint that its
    training resumed from takes its place.

    Raises RunNotFound, ConfigError for a checkpoint that is not registered or that a rank reads, and EtcdUnavailable,
    whose `applied_unknown` says that some may be removed: repeat it then.
    """
    found = await _all_of(client, keys)
    wanted = list(found) if everything else list(dict.fromkeys(ids))
    unknown = [checkpoint_id for checkpoint_id in wanted if checkpoint_id not in found]
    if unknown:
        there = ", ".join(list(found)[-_NAMED:]) or "none"
        raise ConfigError(f"run {keys.run!r} has no checkpoint {unknown[0]}; its newest are: {there}")
    for checkpoint_id in wanted:
        await _forget_one(client, keys, checkpoint_id)
    return Forgotten(keys.run, tuple(wanted), await _latest(client, keys))


async def _latest(client: Client, keys: Keys) -> str | None:
    item = await client.get(keys.latest)
    pointer = Pointer.decode_or_none(item.value) if item is not None else None
    return pointer.id if pointer is not None else None


async def _raise_epoch(client: Client, keys: Keys, highest: int, author: str | None) -> int | None:
    """The new epoch; None if the next leader's token is above `highest` without it."""
    for _ in range(TRIES):
        result = await client.txn([], [Op.get(keys.epoch)])
        (item,) = result.found
        epoch = Epoch.decode_or_none(item.value) if item is not None else None
        number = epoch.number if epoch is not None else 0
        if make_token(number, result.revision) >= highest:
            return None
        last = max(number, epoch_of(highest))
        if last >= MAX_EPOCH:
            raise CheckpointError(f"nothing was adopted: {keys.run} is in epoch {last}, the last: give it another name")
        following = Epoch(
            number=last + 1,
            why="checkpoints that etcd had no record of were adopted",
            after=result.revision,
            author=author,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        txn = raise_epoch(keys, item.mod_revision if item is not None else 0, following)
        if (await client.txn(txn.compares, txn.then)).succeeded:
            return following.number
    raise ConfigError(f"nothing was adopted: the epoch of {keys.run} rose {TRIES} times in the meantime; try again")


async def _adopt_one(client: Client, keys: Keys, manifest: Manifest) -> bool:
    """False if another process has registered it in the meantime."""
    for _ in range(TRIES):
        looked = await client.txn([], registry.look(keys, manifest.id))
        txn = registry.adopt(keys, manifest, CheckpointReads(*looked.found))
        if txn is None:
            return False
        if (await client.txn(txn.compares, txn.then)).succeeded:
            return True
    raise ConfigError(
        f"checkpoint {manifest.id} was not adopted: {keys.run} changed {TRIES} times in the meantime; try again"
    )


async def _all_of(client: Client, keys: Keys) -> dict[str, Manifest | None]:
    """By id, the oldest first; None for an unreadable record. Raises RunNotFound."""
    listing = await client.range(keys.checkpoints)
    if not listing.kvs:
        await require_run(client, keys)
    items = sorted((item for item in listing.kvs if item.key != keys.latest), key=lambda item: item.mod_revision)
    return {item.key.removeprefix(keys.checkpoints): Manifest.decode_or_none(item.value) for item in items}


async def _forget_one(client: Client, keys: Keys, checkpoint_id: str) -> None:
    for _ in range(TRIES):
        looked = await client.txn([], [Op.get(keys.latest), Op.range(keys.readers(checkpoint_id))])
        pointer, reader = looked.found
        if reader is not None:
            raise ConfigError(f"checkpoint {checkpoint_id} is being read by a rank of {keys.run}: try again later")
        readable = {name: manifest for name, manifest in (await _all_of(client, keys)).items() if manifest is not None}
        txn = registry.take_off(keys, checkpoint_id, pointer, readable)
        if (await client.txn(txn.compares, txn.then)).succeeded:
            return
    raise ConfigError(
        f"checkpoint {checkpoint_id} was not forgotten: {keys.run} changed {TRIES} times in the meantime; try again"
    )
