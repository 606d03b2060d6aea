"""One attempt at saving: a background save, and committing or abandoning a slot. Failures never end the training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from instep.errors import CheckpointError, Fenced
from instep.worker.checkpoints import Checkpoints
from instep.worker.slot import Slot, write_error

log = logging.getLogger("instep")


class BackgroundSave:
    """A save that a thread writes and the training thread commits. At most one at a time.

    The thread ends with its save, and an exiting interpreter waits for it. `committed` is called with each committed
    slot, in the training thread.
    """

    def __init__(self, committed: Callable[[Slot], object]) -> None:
        self._committed = committed
        self._slot: Slot | None = None
        self._writing: Future[None] | None = None

    def __repr__(self) -> str:
        return f"BackgroundSave({self._slot if self._writing else 'nothing'})"

    def start(self, slot: Slot | None, write: Callable[[], None]) -> None:
        """Runs `write` in a thread; it must seal the slot. Only the rank that commits passes a slot."""
        assert self._writing is None, "the previous save is not finished"
        self._slot = slot
        thread = ThreadPoolExecutor(1, thread_name_prefix="instep-checkpoint")
        self._writing = thread.submit(write)
        thread.shutdown(wait=False)

    def commit_if_written(self) -> None:
        """Commits the save if it is written. Does not wait for the writing; waits for etcd as any commit does."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> bool:
        """Waits until the save is written, and commits it. False if it failed or is not known yet; the log says why."""
        if self._writing is None:
            return True
        writing, slot = self._writing, self._slot
        self._writing = self._slot = None
        try:
            if slot is None:
                writing.result()
                return True
            with abandon_on_error(slot):
                writing.result()
        except Fenced:  # another rank leads; the log says so
            return False
        except CheckpointError as error:
            if slot is not None:
                report_failure(error, slot)
            return False
        return commit(slot, self._committed) is True


@contextmanager
def abandon_on_error(slot: Slot) -> Iterator[None]:
    """Abandons the slot on an error. In the training thread only. Raises Fenced if a newer leader removed the
    folder."""
    try:
        yield
    except BaseException as error:
        was_removed = isinstance(error, CheckpointError) and not slot.path.is_dir()
        slot.abandon()
        if not was_removed:
            raise
        log.warning("%s was removed while it was written, by a newer leader: this save is abandoned", slot.path)
        text = f"the directory of the checkpoint of step {slot.step} was removed while it was written"
        raise Fenced(text, token=slot.token) from error


@contextmanager
def as_checkpoint_error(slot: Slot) -> Iterator[None]:
    """Raises CheckpointError, with the fix, for an error of the disk."""
    try:
        yield
    except OSError as error:
        raise write_error(slot.step, slot.path, error) from error


def commit(slot: Slot, committed: Callable[[Slot], object]) -> bool | None:
    """Commits the slot. True: it is committed, and `committed` was called. False: it is not, or not yet; the log says
    why. None: another rank leads."""
    try:
        if not slot.commit():
            return False
    except Fenced as fenced:
        log.warning("%s", fenced)
        return None
    except CheckpointError as error:
        report_failure(error, slot)
        return False
    committed(slot)
    return True


class FailureRecorder(Protocol):
    """Reports a failed save to the operators: a slot, or the registry for a step without a slot."""

    def note_failed(self, error: Exception, /) -> None:
        """As Checkpoints.note_failed."""


@dataclass(frozen=True, slots=True)
class UnopenedSlot:
    """A save whose directory could not be created."""

    registry: Checkpoints
    step: int

    def note_failed(self, error: Exception, /) -> None:
        self.registry.note_failed(self.step, str(error))


def report_failure(error: Exception, recorder: FailureRecorder) -> None:
    """Logs the failure as an error and reports it to the operators. Training continues."""
    recorder.note_failed(error)
    log.error("%s; training continues without this checkpoint", error)
