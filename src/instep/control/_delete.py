"""Deletes a run from etcd: all its keys, and only while no process is part of it."""

from __future__ import annotations

from dataclasses import dataclass

from instep.control._discover import run_names
from instep.control._facts import Facts
from instep.control._load import load
from instep.control._rendezvous import rendezvous_keys
from instep.control._runs import RunState, run_not_found, state_of
from instep.errors import CommandRefused
from instep.etcd import Client, Compare, DeleteResult, Op
from instep.protocol.keys import Keys

_NAMED = 5


@dataclass(frozen=True, slots=True)
class Deletable(Facts):
    """What `delete` would delete: a run that no process is part of. `folders` hold its checkpoints, the first 5; their
    files stay."""

    run: str
    state: RunState
    revision: int
    checkpoints: int
    folders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deleted(Facts):
    """`keys` is how many keys of etcd are gone."""

    run: str
    revision: int
    keys: int
    checkpoints: int
    folders: tuple[str, ...]


async def deletable(client: Client, keys: Keys) -> Deletable:
    """Raises RunNotFound, and CommandRefused for a run that a process is part of."""
    picture = await load(client, keys, plans=1, receipts=0, members=True, checkpoints=True, rendezvous=True)
    if picture.empty and not (await client.range(keys.root, limit=1, keys_only=True)).kvs:
        raise run_not_found(keys, await run_names(client, keys.namespace))
    if picture.live or picture.rendezvous.nodes:
        raise _refused(keys)
    paths = (saved.manifest.path.rpartition("/")[0] for saved in picture.saved.values())
    folders = tuple(dict.fromkeys(paths))[:_NAMED]
    return Deletable(keys.run, state_of(picture), picture.revision, len(picture.saved), folders)


async def delete(client: Client, keys: Keys) -> Deleted:
    """Delete all keys of a run. Its checkpoints' files stay where they are.

    Nothing is deleted while a worker, an agent or a torchrun of the run is there: each of them holds a key on a lease,
    and the transaction that deletes compares them. Raises RunNotFound, CommandRefused, and EtcdUnavailable, whose
    `applied_unknown` tells that it may have happened: do it again then.
    """
    found = await deletable(client, keys)
    rendezvous = rendezvous_keys(keys)
    present = (keys.members, keys.election, rendezvous.nodes, rendezvous.election)
    guards = [Compare.absent(prefix, prefix=True) for prefix in present]
    total = 0
    revision = 0
    # The numerous keys of a large run go first: no single transaction deletes all of it.
    for prefix in (keys.acks, keys.receipts, keys.metrics, keys.plans, keys.root):
        result = await client.txn(guards, [Op.delete(prefix, prefix=True)])
        if not result.succeeded:
            raise _refused(keys)
        revision = result.revision
        total += sum(part.deleted for part in result.results if isinstance(part, DeleteResult))
    return Deleted(keys.run, revision, total, found.checkpoints, found.folders)


def _refused(keys: Keys) -> CommandRefused:
    return CommandRefused(
        f"nothing was deleted: run {keys.run} is live, a worker, agent or torchrun of it is still registered; end it "
        f"with 'instep stop {keys.run}', and wait for the lease of one that was killed (10 s by default)"
    )
