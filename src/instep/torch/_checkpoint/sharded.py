"""Saves a state that is sharded over the ranks: all write into one directory, and the leader commits it."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch.distributed.checkpoint.metadata import Metadata

from instep.errors import CheckpointError, Fenced
from instep.worker.manifest import FileSum
from instep.worker.slot import Slot, write_error

from .background_save import UnopenedSlot, abandon_on_error, as_checkpoint_error, commit, report_failure
from .metadata import METADATA, files_in, read_metadata
from .parts import on_cpu
from .saver import MAX_ATTEMPTS, BaseSaver
from .shards import Shards, check_files_visible, checksums_of_rank, result_of

log = logging.getLogger("instep")

LEADERLESS_S: Final = 15.0
"""How long the ranks wait for a leader. A lost node is replaced when its lease of 10 s ends."""
POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class SlotOffer:
    """What a rank sends before a save: the directory that it opened as the leader, or why it could not."""

    token: int = 0
    path: str = ""
    problem: str = ""
    waited_s: float = 0.0


class ShardedSaver(BaseSaver):
    """Saves with all ranks.

    Promise: after `save`, all ranks know the same result. Limit: a rank that dies during the save ends it for all, as
    in any collective; earlier checkpoints stay committed."""

    layout = "sharded"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._shards = Shards(self.parts, rank=self.run.rank, world_size=self.run.world_size)
        self.whole = self._shards.others

    def save(self, step: int) -> bool:
        self.background_save.finish()
        newest = self.registry.saved
        if newest is not None:
            self.cleanup.note_committed(newest.id)
        for _ in range(MAX_ATTEMPTS):
            offer, slot = self._agree(step)
            if not offer.path:
                return False
            if self.background:
                self._start(Path(offer.path), slot)
                return True
            saved = self._save_together(Path(offer.path), slot)
            if saved is not None:
                return saved
            self.registry.wait(lambda: not self.run.leads, POLL_S)
        return False

    def verifies(self, number: int, name: str) -> bool:
        """Whether this rank verifies the file. Together, the ranks verify all; each one verifies what it reads
        alone."""
        return name == METADATA or number % self.run.world_size == self.run.rank

    def problem_of_any_rank(self, problem: str | None) -> str | None:
        """The first problem that any rank found."""
        return next((found for found in self._shards.all_gather(problem) if found is not None), None)

    def mismatch(self, folder: Path, listed: Collection[str]) -> str | None:
        try:
            found = read_metadata(folder, self.owners)
        except ValueError as error:
            return str(error)
        strange = sorted({METADATA, *files_in(found)} - set(listed))
        if strange:
            return f"{strange[0]} is not in the list of its files"
        problem = self._shards.mismatch(found)
        if problem is not None:
            return f"it does not fit this script's parts: {problem}"
        return super().mismatch(folder, listed)

    def load(self, folder: Path) -> None:
        self._shards.read(folder, self.owners, weights_only=self.weights_only)
        super().load(folder)

    # -- agreeing on the slot -----------------------------------------------------------------------------------------

    def _agree(self, step: int) -> tuple[SlotOffer, Slot | None]:
        """The directory that all ranks write to, and the slot on the leader. All ranks return the same offer. Without a
        path, no rank can save, and the log says why."""
        started = time.monotonic()
        while True:
            slot, mine = self._offer(step, time.monotonic() - started)
            offers = self._shards.all_gather(mine)
            chosen = max(offers, key=lambda offer: offer.token)
            if slot is not None and chosen.path != mine.path:
                slot.abandon()  # this leader did not know of its successor
                slot = None
            if chosen.path:
                self.cleanup.note(step, chosen.token)
                return chosen, slot
            problem = next((offer.problem for offer in offers if offer.problem), "")
            if not problem and max(offer.waited_s for offer in offers) >= LEADERLESS_S:
                problem = f"no rank leads the run, so step {step} cannot be saved"
            if problem:
                if self.run.rank == 0:
                    report_failure(CheckpointError(problem), UnopenedSlot(self.registry, step))
                return SlotOffer(problem=problem), None
            self.registry.wait(lambda: self.run.leads, POLL_S)

    def _offer(self, step: int, waited_s: float) -> tuple[Slot | None, SlotOffer]:
        if not self.run.leads:
            return None, SlotOffer(waited_s=waited_s)
        try:
            slot = self._open(step)
        except Fenced:
            return None, SlotOffer(waited_s=waited_s)
        except CheckpointError as error:
            return None, SlotOffer(problem=str(error))
        return slot, SlotOffer(token=slot.token, path=str(slot.path))

    # -- writing ------------------------------------------------------------------------------------------------------

    def _save_together(self, path: Path, slot: Slot | None) -> bool | None:
        """Writes and commits. True: committed. False: not, or not yet. None: another rank leads. The same on all
        ranks."""
        with abandon_on_error(slot) if slot is not None else nullcontext():
            outcome: bool | None = False
            try:
                known = self._collect_checksums(path, slot, self._shards.write(path))
            except OSError as error:  # on all ranks
                outcome = self._failed(slot, error) if slot is not None else False
            else:
                outcome = self._complete(slot, known) if slot is not None else False
            results = self._shards.all_gather((slot is not None, outcome))
            return next((outcome for leads, outcome in results if leads), False)

    def _failed(self, slot: Slot, error: OSError) -> bool | None:
        was_removed = not slot.path.is_dir()
        slot.abandon()
        if was_removed:
            log.warning("%s was removed while it was written, by a newer leader", slot.path)
            return None
        report_failure(write_error(slot.step, slot.path, error), slot)
        return False

    def _collect_checksums(self, path: Path, slot: Slot | None, metadata: Metadata) -> dict[str, FileSum]:
        """The checksums of all shards, each computed by the rank that wrote it. Raises OSError, on all ranks, if one
        could not be read."""
        sums: dict[str, FileSum] | OSError
        try:
            sums = checksums_of_rank(path, metadata, self.run.rank)
            if slot is not None:
                check_files_visible(path, metadata)
        except OSError as error:
            sums = error
        known: dict[str, FileSum] = {}
        for found in self._shards.all_gather(sums):
            if isinstance(found, OSError):
                raise found
            known |= found
        return known

    def _complete(self, slot: Slot, known: Mapping[str, FileSum]) -> bool | None:
        try:
            with abandon_on_error(slot):
                self._write(slot, self._states())
                slot.seal(known)
        except Fenced:  # already logged
            return None
        except CheckpointError as error:
            report_failure(error, slot)
            return False
        return commit(slot, self.cleanup.after_commit)

    def _start(self, path: Path, slot: Slot | None) -> None:
        """Returns when all ranks have copied their state. The leader seals the directory when all have written."""
        others = on_cpu(self._states()) if slot else {}
        written = self._shards.start_writing(path)

        def complete() -> None:
            if slot is None:
                with suppress(OSError):  # the leader gets the error too, and reports it
                    self._collect_checksums(path, slot, result_of(written))
                return
            with as_checkpoint_error(slot):
                known = self._collect_checksums(path, slot, result_of(written))
            self._write(slot, others)
            slot.seal(known)

        self.background_save.start(slot, complete)
