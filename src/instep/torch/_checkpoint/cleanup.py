"""Removes old checkpoints and failed saves: first from the registry, then from the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from instep.errors import InstepError
from instep.names import REVISION_BITS
from instep.wire.documents import Manifest
from instep.wire.messages import Inventory
from instep.worker.adoption import find_checkpoints
from instep.worker.checkpoints import Checkpoints
from instep.worker.manifest import COMMITTED, MANIFEST, Owners
from instep.worker.slot import Slot

from .parts import read_label
from .retention import CommittedCheckpoint, SlotDirectory, slot_directory_named, to_delete, to_forget

log = logging.getLogger("instep")

FORGOTTEN_AT_ONCE: Final = 50
"""The limit of checkpoints removed from the registry after one save: training waits meanwhile."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 600.0
"""Pause between attempts to register checkpoints again with one token: training waits during each attempt."""


class CheckpointCleanup:
    """Cleans up one folder. Deletes only directories that carry the label of this run.

    Promise: of directories with a manifest, deletes only those that were removed from the registry, and those that were
    saved since this object was created and never committed. A committed checkpoint is deleted only after it was removed
    from the registry, not when the registry itself was lost.

    Limit: two runs with the same name, in two etcds or two namespaces, must not share a folder: they look like one. If
    a process dies between removing a record and deleting the files, the files stay.
    """

    def __init__(
        self, run: str, folder: Path, registry: Checkpoints, owners: Owners, *, keep: int | None, keep_every: int
    ) -> None:
        self._run = run
        self._folder = folder
        self._registry = registry
        self._owners = owners
        self._keep = keep
        self._keep_every = keep_every
        self._known: set[tuple[int, int]] = set()
        self._open: dict[str, Slot] = {}
        self._leaving: dict[str, str] = {}
        """Ids, by directory, of checkpoints that this process removes from the registry."""
        self._names: dict[str, str | None] = {}
        """By id of a committed checkpoint: its directory; None if only the id is known."""
        self._listed: frozenset[str] = frozenset()
        """Ids in the registry at the last check, without those that this process removes."""
        self._epoch: int | None = None
        """First the epoch of the newest checkpoint that this process knows of; later that of the token with which it
        last registered all checkpoints again."""
        self._refused_token = 0
        """The token with which not all checkpoints could be registered again. The next attempt is at `_retry_at`
        (seconds, monotonic clock), or with another token."""
        self._retry_at = self._pause_s = 0.0
        self._before = _names_in(folder)
        """The directories at creation: another etcd may have known them, and issued the same tokens."""

    def __repr__(self) -> str:
        return f"CheckpointCleanup({self._folder}, keep {self._keep}, every {self._keep_every})"

    def note(self, step: int, token: int) -> None:
        """Notes that a save of this run has begun, on any rank."""
        self._known.add((step, token))

    def note_open(self, slot: Slot) -> None:
        """Notes that a save of this process has begun: its directory is kept until it is committed or gone."""
        self.note(slot.step, slot.token)
        self._open[slot.path.name] = slot

    def note_committed(self, checkpoint_id: str, name: str | None = None) -> None:
        """Notes that a save of this run was committed."""
        if name is not None or checkpoint_id not in self._names:
            self._names[checkpoint_id] = name

    def after_commit(self, slot: Slot) -> None:
        """Cleans up after `slot` was committed. Logs what fails and retries it after the next commit."""
        self.note_committed(slot.id, slot.path.name)
        self._settle()
        try:
            inventory = self._registry.inventory()
        except InstepError as error:
            log.warning("older checkpoints are kept for now: %s", error)
            return
        named = {item.id: name for item in inventory.manifests if (name := _name_of(item)) is not None}
        for checkpoint_id in inventory.ids:
            self.note_committed(checkpoint_id, named.get(checkpoint_id))
        unlisted = self._detect_loss(inventory)
        there = inventory.ids - self._forget(inventory, named)
        self._delete_forgotten(there)
        self._listed = (there - frozenset(self._leaving.values())) | unlisted
        attempts = tuple(self._attempts())
        still = inventory.ids | {item.id for item in attempts}
        self._names = {checkpoint_id: name for checkpoint_id, name in self._names.items() if checkpoint_id in still}
        for name in to_delete(
            attempts,
            committed={name for name in self._names.values() if name is not None},
            unlisted={checkpoint_id for checkpoint_id, name in self._names.items() if name is None},
            pending=self._open,
            known=self._known,
            before=self._before if self._before is not None else {item.name for item in attempts},
            token=slot.token,
        ):
            log.info("removing %s: it was never committed", self._folder / name)
            self._delete(name)

    def _detect_loss(self, inventory: Inventory) -> frozenset[str]:
        """Finds checkpoints that were registered and are now only on the disk: the registry was lost, or their records
        were deleted by hand. Returns those that could not be registered again; the next save retries."""
        lost = [
            checkpoint_id
            for checkpoint_id in sorted(self._listed - inventory.ids)
            if (name := self._names.get(checkpoint_id)) is not None and (self._folder / name / MANIFEST).exists()
        ]
        if not lost:
            return frozenset()
        self._leaving.clear()
        log.warning(
            "checkpoints %s were committed, but etcd no longer has their records: their files are kept",
            ", ".join(lost),
        )
        return frozenset() if self._adopt(inventory) else frozenset(lost)

    def at_boundary(self) -> None:
        """Called at each boundary. On the leader, registers checkpoints again if the epoch of its token has changed:
        etcd's history has gone back then.

        If etcd refuses the records, as when the rank gets another token meanwhile, a later boundary retries."""
        token, saved = self._registry.token, self._registry.saved
        if self._epoch is None:
            newest = saved.token if saved is not None else token
            self._epoch = newest >> REVISION_BITS if newest else None
        if not token or token >> REVISION_BITS == self._epoch:
            return
        now = time.monotonic()
        if token != self._refused_token:
            self._pause_s = FIRST_PAUSE_S
        elif now < self._retry_at:
            return
        if self._compare():
            self._epoch = token >> REVISION_BITS
            return
        self._refused_token, self._retry_at = token, time.monotonic() + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)

    def _compare(self) -> bool:
        """Compares the disk with the registry. True if all committed checkpoints are registered afterwards."""
        try:
            return self._adopt(self._registry.inventory())
        except InstepError as error:
            log.warning("the checkpoints in %s are not compared with etcd's records yet: %s", self._folder, error)
            return False

    def _adopt(self, inventory: Inventory) -> bool:
        """Registers complete, committed checkpoints of this run on the disk again. False if some are not registered
        yet."""
        try:
            unlisted = list(
                find_checkpoints(
                    self._folder,
                    self._run,
                    self._registry.namespace,
                    self._owners,
                    wanted=lambda step, token, committed: committed and f"{step}-{token}" not in inventory.ids,
                )
            )
            found = [item.record for item in unlisted if item.record is not None]
            if not found:
                return True
            for item in unlisted:
                if item.record is None:
                    log.warning("checkpoint %s is not registered again: %s", item.path.name, item.problem)
            adopted = self._registry.adopt(found)
        except (InstepError, OSError) as error:
            log.warning("checkpoints in %s are not registered again yet: %s", self._folder, error)
            return False
        log.warning("etcd had lost its records of checkpoints; registered again: %s", ", ".join(adopted) or "none yet")
        return len(adopted) == len(found)

    def _forget(self, inventory: Inventory, named: Mapping[str, str]) -> frozenset[str]:
        """Removes outdated checkpoints from the registry. Returns the ids known to be removed; the next call finds
        others."""
        if self._keep is None:
            return frozenset()
        own = self._registry.is_own
        kept = [CommittedCheckpoint(item.id, item.step, tuple(item.lineage), own(item)) for item in inventory.manifests]
        outdated = to_forget(kept, self._keep, self._keep_every, inventory.newest)[-FORGOTTEN_AT_ONCE:]
        if not outdated:
            return frozenset()
        self._leaving |= {name: item for item, name in named.items() if item in outdated}
        try:
            return frozenset(self._registry.forget(outdated))
        except InstepError as error:
            log.warning("older checkpoints are kept for now: %s", error)
            return frozenset()

    def _delete_forgotten(self, there: Collection[str]) -> None:
        for name, checkpoint_id in list(self._leaving.items()):
            if checkpoint_id not in there:
                del self._leaving[name]
                if name not in self._open and self._is_ours(name):
                    self._delete(name)

    def _settle(self) -> None:
        """Completes commits that etcd had not answered in time: etcd has applied or refused them before a later one."""
        for name, slot in list(self._open.items()):
            if slot.state == "sent":
                with contextlib.suppress(InstepError):
                    slot.commit()
            if slot.state not in ("open", "sent"):
                del self._open[name]

    def _attempts(self) -> Iterator[SlotDirectory]:
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                whole, committed = (os.path.lexists(path / name) for name in (MANIFEST, COMMITTED))
                attempt = slot_directory_named(path.name, whole=whole, committed=committed)
                if attempt is not None and self._is_ours(path.name):
                    yield attempt

    def _is_ours(self, name: str) -> bool:
        """Whether this run made the directory. An empty one counts too: its saver died at once."""
        path = self._folder / name
        if slot_directory_named(name, whole=False) is None or path.is_symlink() or not path.is_dir():
            return False
        label = read_label(path, self._owners)
        return label.get("run") == self._run if label is not None else not any(path.iterdir())

    def _delete(self, name: str) -> None:
        path = self._folder / name
        try:
            for mark in (COMMITTED, MANIFEST):  # first: without them, the rest is not taken for a checkpoint
                (path / mark).unlink(missing_ok=True)
            shutil.rmtree(path)
        except OSError as error:
            log.warning("%s cannot be removed: %s", path, error)


def _name_of(manifest: Manifest) -> str | None:
    """The name of its directory; None if the record names a directory that belongs to another checkpoint."""
    name = Path(manifest.path).name
    attempt = slot_directory_named(name, whole=True)
    return name if attempt is not None and attempt.id == manifest.id else None


def _names_in(folder: Path) -> frozenset[str] | None:
    """The names in a folder; None if it cannot be read."""
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        log.warning("%s cannot be read, so no complete directory is removed there: %s", folder, error)
        return None
