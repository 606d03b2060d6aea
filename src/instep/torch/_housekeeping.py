"""What is left of older checkpoints and of attempts that failed: taken off the registry, then off the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from instep.errors import InstepError
from instep.worker.checkpoints import Checkpoints
from instep.worker.manifest import MANIFEST
from instep.worker.saved import Inventory
from instep.worker.slot import Slot

from ._parts import label_of
from ._retention import Attempt, Kept, attempt_named, to_delete, to_forget

log = logging.getLogger("instep")

FORGOTTEN_AT_ONCE: Final = 50
"""Checkpoints that are forgotten after one save, at most; the training waits meanwhile."""


class Housekeeping:
    """Of one folder. Deletes only directories that a Checkpointer of this run has labelled as its own; of those with a
    manifest only what was forgotten, and what was saved since this one was made and never committed.

    Limits: two runs of one name in two etcds, or two namespaces, must not share a folder: here they are one. What was
    forgotten by a process that died before it could delete the files stays.
    """

    def __init__(self, run: str, folder: Path, registry: Checkpoints, *, keep: int | None, keep_every: int) -> None:
        self._run = run
        self._folder = folder
        self._registry = registry
        self._keep = keep
        self._keep_every = keep_every
        self._known: set[tuple[int, int]] = set()
        self._open: dict[str, Slot] = {}
        self._leaving: dict[str, str] = {}
        """Ids by directory, of what this process wants to be forgotten."""
        self._before = _names_in(folder)
        """What was there when this one was made: another etcd may have known it, and given the same tokens."""

    def __repr__(self) -> str:
        return f"Housekeeping({self._folder}, keep {self._keep}, every {self._keep_every})"

    def note(self, step: int, token: int) -> None:
        """A save of this run has begun, here or elsewhere."""
        self._known.add((step, token))

    def note_open(self, slot: Slot) -> None:
        """A save of this process has begun: its directory is left alone until it is committed or gone."""
        self.note(slot.step, slot.token)
        self._open[slot.path.name] = slot

    def tidy(self, slot: Slot) -> None:
        """After `slot` was committed. What cannot be done now is logged, and tried again after the next one."""
        self._settle()
        try:
            inventory = self._registry.inventory()
        except InstepError as error:
            log.warning("older checkpoints are kept for now: %s", error)
            return
        there = inventory.ids - self._forget(inventory)
        self._delete_forgotten(there)
        attempts = tuple(self._attempts())
        for name in to_delete(
            attempts,
            committed={Path(item.path).name for item in inventory.manifests},
            unlisted=there - {item.id for item in inventory.manifests},
            pending=self._open,
            known=self._known,
            before=self._before if self._before is not None else {item.name for item in attempts},
            token=slot.token,
        ):
            log.info("removing %s: it was never committed", self._folder / name)
            self._delete(name)

    def _forget(self, inventory: Inventory) -> frozenset[str]:
        """Ids of what is off the registry now. What was asked for and is not among them may be so too: next time."""
        if self._keep is None:
            return frozenset()
        kept = [Kept(item.id, item.step, tuple(item.lineage)) for item in inventory.manifests]
        outdated = to_forget(kept, self._keep, self._keep_every, inventory.newest)[-FORGOTTEN_AT_ONCE:]
        if not outdated:
            return frozenset()
        self._leaving |= {Path(item.path).name: item.id for item in inventory.manifests if item.id in outdated}
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
        """Commits that etcd had not answered in time are answered by now, for they come before the one that was."""
        for name, slot in list(self._open.items()):
            if slot.state == "sent":
                with contextlib.suppress(InstepError):
                    slot.commit()
            if slot.state not in ("open", "sent"):
                del self._open[name]

    def _attempts(self) -> Iterator[Attempt]:
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.iterdir()):
                attempt = attempt_named(path.name, whole=(path / MANIFEST).exists())
                if attempt is not None and self._is_ours(path.name):
                    yield attempt

    def _is_ours(self, name: str) -> bool:
        """Or nobody's: a saver that died at once has left an empty directory."""
        path = self._folder / name
        if attempt_named(name, whole=False) is None or path.is_symlink() or not path.is_dir():
            return False
        label = label_of(path)
        return label.get("run") == self._run if label is not None else not any(path.iterdir())

    def _delete(self, name: str) -> None:
        path = self._folder / name
        try:
            (path / MANIFEST).unlink(missing_ok=True)  # first: if we die now, the rest is seen to be of no use
            shutil.rmtree(path)
        except OSError as error:
            log.warning("%s cannot be removed: %s", path, error)


def _names_in(folder: Path) -> frozenset[str] | None:
    """None where that cannot be found out."""
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        log.warning("%s cannot be read, so no whole directory is removed there: %s", folder, error)
        return None
