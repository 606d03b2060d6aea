"""Checkpoints put into a run's registry, and taken off it, by an operator. Their files are left as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from instep.control._change import TRIES, change_by
from instep.control._discover import run_names
from instep.control._facts import Facts
from instep.control._runs import run_not_found
from instep.errors import CheckpointError, ConfigError
from instep.etcd import Client, Op
from instep.protocol import checkpoints
from instep.protocol.checkpoints import AdoptionReads
from instep.protocol.keys import Keys
from instep.protocol.records import Epoch, Manifest, Pointer
from instep.protocol.transactions import raise_epoch
from instep.recipes.token import MAX_EPOCH, epoch_of, make_token

_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Adopted(Facts):
    """`adopted` are ids of checkpoints that were registered, `known` of those that were registered already. `latest` is
    the one that a start resumes from now. `epoch` is the run's new epoch, None if tokens rise without it."""

    run: str
    adopted: tuple[str, ...]
    known: tuple[str, ...]
    latest: str | None
    epoch: int | None


@dataclass(frozen=True, slots=True)
class Forgotten(Facts):
    """`latest` is the checkpoint that a start resumes from now, None for none."""

    run: str
    forgotten: tuple[str, ...]
    latest: str | None


async def adopt(client: Client, keys: Keys, records: Sequence[Manifest], *, author: str | None = None) -> Adopted:
    """Registers checkpoints that etcd has no record of. `records` are made from the directories.

    A start then resumes from the newest. If etcd would give tokens below theirs (it was lost or restored from a
    backup), the run's epoch rises first: later checkpoints then count as newer. Doing it again changes
    nothing. Raises CheckpointError for a record that cannot be one, and EtcdUnavailable, whose `applied_unknown` tells
    that some may be in: do it again then.
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
    pointer = await client.get(keys.latest)
    newest = Pointer.decode_or_none(pointer.value) if pointer is not None else None
    return Adopted(
        keys.run,
        tuple(adopted),
        tuple(item.id for item in manifests if item.id not in adopted),
        newest.id if newest is not None else None,
        epoch,
    )


async def forget(client: Client, keys: Keys, ids: Iterable[str] = (), *, everything: bool = False) -> Forgotten:
    """Removes the records of checkpoints, so no start resumes from them. Also the newest: the one that it resumed
    from takes its place.

    Raises RunNotFound, and ConfigError for one that is not in it or that a rank reads, and EtcdUnavailable, whose
    `applied_unknown` tells that some may be off it: do it again then.
    """
    found = await _all_of(client, keys)
    wanted = list(found) if everything else list(dict.fromkeys(ids))
    strange = [checkpoint_id for checkpoint_id in wanted if checkpoint_id not in found]
    if strange:
        there = ", ".join(list(found)[-_NAMED:]) or "none"
        raise ConfigError(f"run {keys.run!r} has no checkpoint {strange[0]}; the newest it has: {there}")
    for checkpoint_id in wanted:
        await _forget_one(client, keys, checkpoint_id)
    pointer = await client.get(keys.latest)
    newest = Pointer.decode_or_none(pointer.value) if pointer is not None else None
    return Forgotten(keys.run, tuple(wanted), newest.id if newest is not None else None)


async def _raise_epoch(client: Client, keys: Keys, highest: int, author: str | None) -> int | None:
    """The new epoch, where without it the next leader's token could be lower than `highest`."""
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
            why="checkpoints were adopted of which etcd knew nothing",
            after=result.revision,
            author=author,
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        txn = raise_epoch(keys, item.mod_revision if item is not None else 0, following)
        if (await client.txn(txn.compares, txn.then)).succeeded:
            return following.number
    raise ConfigError(f"nothing was adopted: the epoch of {keys.run} rose {TRIES} times meanwhile; try again")


async def _adopt_one(client: Client, keys: Keys, manifest: Manifest) -> bool:
    """False if another process has registered it meanwhile."""
    for _ in range(TRIES):
        looked = await client.txn([], checkpoints.look_to_adopt(keys, manifest.id))
        txn = checkpoints.adopt(keys, manifest, AdoptionReads(*looked.found))
        if txn is None:
            return False
        if (await client.txn(txn.compares, txn.then)).succeeded:
            return True
    raise ConfigError(
        f"checkpoint {manifest.id} was not adopted: {keys.run} changed {TRIES} times meanwhile; try again"
    )


async def _all_of(client: Client, keys: Keys) -> dict[str, Manifest | None]:
    """By id, the oldest first; None for a record that cannot be read. Raises RunNotFound."""
    listing = await client.range(keys.checkpoints)
    if not listing.kvs and not (await client.range(keys.root, limit=1)).kvs:
        raise run_not_found(keys, await run_names(client, keys.namespace))
    items = sorted((item for item in listing.kvs if item.key != keys.latest), key=lambda item: item.mod_revision)
    return {item.key.removeprefix(keys.checkpoints): Manifest.decode_or_none(item.value) for item in items}


async def _forget_one(client: Client, keys: Keys, checkpoint_id: str) -> None:
    for _ in range(TRIES):
        looked = await client.txn([], [Op.get(keys.latest), Op.range(keys.readers(checkpoint_id))])
        pointer, reader = looked.found
        if reader is not None:
            raise ConfigError(f"checkpoint {checkpoint_id} is being read by a rank of {keys.run}: try again later")
        there = {name: manifest for name, manifest in (await _all_of(client, keys)).items() if manifest is not None}
        txn = checkpoints.take_off(keys, checkpoint_id, pointer, there)
        if (await client.txn(txn.compares, txn.then)).succeeded:
            return
    raise ConfigError(
        f"checkpoint {checkpoint_id} was not forgotten: {keys.run} changed {TRIES} times meanwhile; try again"
    )
