"""Transactions that commit, adopt and forget checkpoints: what each compares and writes. Pure.

A checkpoint is committed when one transaction that compares the saver's token has written its manifest and the pointer.
A directory without a manifest was never saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from instep.etcd import Compare, KeyValue, Op
from instep.protocol.keys import Keys
from instep.protocol.records import Agreed, FailedSave, FailedSaves, Manifest, Pointer, Resume, Saving
from instep.protocol.resuming import LINEAGE
from instep.protocol.transactions import Txn, pointer_to
from instep.recipes.fence import Fence

FAILED_KEPT = 20
"""Failed saves that are kept for display."""


class CommitOutcome(Enum):
    COMMITTED = "committed"
    FENCED = "fenced"
    OPEN = "open"
    """Neither: the commit may be sent."""


@dataclass(frozen=True, slots=True)
class CheckpointReads:
    """The values of the keys that a commit reads; an adoption reads no candidate."""

    manifest: KeyValue | None
    pointer: KeyValue | None
    agreed: KeyValue | None = None
    candidate: KeyValue | None = None

    def has_left(self, manifest: Manifest) -> bool:
        """Whether the run went back to an older checkpoint after this one's step."""
        agreed = Agreed.decode_or_none(self.agreed.value) if self.agreed is not None else None
        return agreed is not None and manifest.plan < agreed.back

    @property
    def newest(self) -> Pointer | None:
        return Pointer.decode_or_none(self.pointer.value) if self.pointer is not None else None


def look(keys: Keys, checkpoint_id: str, fence: Fence | None = None) -> tuple[Op, ...]:
    """The reads of a CheckpointReads, in the order of its fields."""
    reads = (keys.checkpoint(checkpoint_id), keys.latest, keys.agreed, *([fence.key] if fence is not None else []))
    return tuple(map(Op.get, reads))


def outcome(manifest: Manifest, fence: Fence, found: CheckpointReads) -> CommitOutcome:
    """The state of a commit that may have been sent before. A written manifest is a commit, whichever node leads
    now."""
    if found.manifest is not None and is_same(Manifest.decode_or_none(found.manifest.value), manifest):
        return CommitOutcome.COMMITTED
    if not fence.is_held(found.candidate):
        return CommitOutcome.FENCED
    return CommitOutcome.OPEN


def is_same(written: Manifest | None, manifest: Manifest) -> bool:
    """Whether both are the same attempt. The lineage is computed at each try and does not count."""
    return written is not None and replace(written, lineage=manifest.lineage) == manifest


def commit(keys: Keys, fence: Fence, manifest: Manifest, found: CheckpointReads, *, announced: bool) -> Txn:
    """etcd refuses it if another node leads, or if any of the keys was written since `found`. A request that arrives
    late, after its retry, therefore does nothing. `announced`: `state/saving` names this checkpoint."""
    pointer = pointer_to(manifest).encode()
    then = [Op.put(keys.checkpoint(manifest.id), manifest.encode()), Op.put(keys.saved, pointer)]
    if not found.has_left(manifest):
        then.append(Op.put(keys.latest, pointer))  # otherwise a restart would resume from what the run has left
    if announced:
        then.append(Op.delete(keys.saving))
    compares = (
        fence.compare(),
        Compare.mod_revision(keys.latest, "==", _revision(found.pointer)),
        Compare.mod_revision(keys.checkpoint(manifest.id), "==", _revision(found.manifest)),
        Compare.mod_revision(keys.agreed, "==", _revision(found.agreed)),
    )
    return Txn(compares, tuple(then))


def lineage(
    found: CheckpointReads, newest: Manifest | None, resume: Resume | None, resume_revision: int
) -> tuple[str, ...]:
    """The lineage of a checkpoint that is committed now. `newest` is the manifest that the pointer names; `resume` is
    the checkpoint that the ranks agreed to resume from, and counts if nothing was committed since."""
    pointer = found.newest
    if resume is not None and resume.final and resume_revision > _revision(found.pointer):
        if resume.id is None:
            return ()
        before = newest.lineage if newest is not None else ()
        older = before[before.index(resume.id) + 1 :] if resume.id in before else ()
        if pointer is not None and pointer.id == resume.id:
            older = before
        return (resume.id, *older)[:LINEAGE]
    if pointer is None:
        return ()
    return (pointer.id, *(newest.lineage if newest is not None else ()))[:LINEAGE]


def adopt(keys: Keys, manifest: Manifest, found: CheckpointReads, fence: Fence | None = None) -> Txn | None:
    """Registers a checkpoint that exists only on disk. Moves the pointer to it if it is newer and the run has not left
    it. None if it is registered already.

    `fence` is the leader's. Without one it is unknown whether this etcd has the views and plans that the checkpoint
    names, so the checkpoint counts as one of an earlier start.
    """
    if found.manifest is not None:
        return None
    newest, was_left = found.newest, found.has_left(manifest)
    is_newer = newest is None or (manifest.token, manifest.step) > (newest.token, newest.step)
    if fence is None:
        manifest = replace(manifest, view=0, plan=0)
    then = [Op.put(keys.checkpoint(manifest.id), manifest.encode())]
    if is_newer and not was_left:
        pointer = pointer_to(manifest).encode()
        then += [Op.put(keys.latest, pointer), Op.put(keys.saved, pointer)]
    compares = [
        Compare.absent(keys.checkpoint(manifest.id)),
        Compare.mod_revision(keys.latest, "==", _revision(found.pointer)),
        Compare.mod_revision(keys.agreed, "==", _revision(found.agreed)),
    ]
    if fence is not None:
        compares.append(fence.compare())
    return Txn(tuple(compares), tuple(then))


def announce(keys: Keys, fence: Fence, saving: Saving) -> Txn:
    return Txn((fence.compare(),), (Op.put(keys.saving, saving.encode()),))


def withdraw(keys: Keys, saving: Saving) -> Txn:
    """Deletes the announcement of a save that was given up."""
    return Txn((Compare.value(keys.saving, "==", saving.encode()),), (Op.delete(keys.saving),))


def forget(keys: Keys, checkpoint_id: str, pointer: KeyValue | None) -> Txn | None:
    """None for the newest checkpoint, which is never forgotten. etcd refuses it while a rank reads the checkpoint."""
    newest = Pointer.decode_or_none(pointer.value) if pointer is not None else None
    if newest is None or newest.id == checkpoint_id:
        return None
    key = keys.checkpoint(checkpoint_id)
    compares = (
        Compare.present(key),
        Compare.mod_revision(keys.latest, "==", _revision(pointer)),
        Compare.absent(keys.readers(checkpoint_id), prefix=True),
    )
    return Txn(compares, (Op.delete(key),))


def note_failed(keys: Keys, found: KeyValue | None, failed: FailedSave) -> Txn | None:
    """Adds a failed save to the list. None if it is the last one already, because a reply was lost. etcd refuses it if
    another was added since `found`."""
    known = FailedSaves.decode_or_none(found.value) if found is not None else None
    saves = known.saves if known is not None else ()
    if saves and saves[-1] == failed:
        return None
    record = FailedSaves(saves=(*saves, failed)[-FAILED_KEPT:])
    return Txn(
        (Compare.mod_revision(keys.failed_saves, "==", _revision(found)),),
        (Op.put(keys.failed_saves, record.encode()),),
    )


def take_off(keys: Keys, checkpoint_id: str, pointer: KeyValue | None, there: Mapping[str, Manifest]) -> Txn:
    """Forgets a checkpoint for an operator. If it was the newest, the pointer moves to the one before it, out of
    `there`. etcd refuses it if another was committed since, or while a rank reads the checkpoint."""
    then = [Op.delete(keys.checkpoint(checkpoint_id))]
    newest = Pointer.decode_or_none(pointer.value) if pointer is not None else None
    if newest is not None and newest.id == checkpoint_id:
        before = _before(checkpoint_id, there)
        if before is not None:
            then += [Op.put(key, pointer_to(before).encode()) for key in (keys.latest, keys.saved)]
        else:
            then += [Op.delete(keys.latest), Op.delete(keys.saved)]
    compares = (
        Compare.mod_revision(keys.latest, "==", _revision(pointer)),
        Compare.absent(keys.readers(checkpoint_id), prefix=True),
    )
    return Txn(compares, tuple(then))


def _before(checkpoint_id: str, there: Mapping[str, Manifest]) -> Manifest | None:
    """The checkpoint that it resumed from, or the newest of the others."""
    others = {name: manifest for name, manifest in there.items() if name != checkpoint_id}
    lineage = there[checkpoint_id].lineage if checkpoint_id in there else ()
    ancestor = next((others[name] for name in lineage if name in others), None)
    return ancestor or max(others.values(), key=lambda item: (item.token, item.step), default=None)


def start_reading(keys: Keys, checkpoint_id: str, node: str, lease_id: int) -> Txn:
    """Pins a checkpoint. etcd refuses it if the checkpoint is gone; the manifest is the last result."""
    key = keys.checkpoint(checkpoint_id)
    put = Op.put(keys.reader(checkpoint_id, node), "", lease=lease_id)
    return Txn((Compare.present(key),), (put, Op.get(key)))


def _revision(item: KeyValue | None) -> int:
    return item.mod_revision if item is not None else 0
