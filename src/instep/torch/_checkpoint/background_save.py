"""One save in the background: written by a thread, committed by the training thread once all of it is written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from instep.errors import CheckpointError, Fenced
from instep.worker.checkpoints import Checkpoints
from instep.worker.slot import Slot, trouble


class BackgroundSave:
    """At most one at a time. The thread ends with its save; an interpreter that exits waits for it.

    `committed` is called with each slot that was committed, in the training thread.
    """

    def __init__(self, committed: Callable[[Slot], object]) -> None:
        self._committed = committed
        self._slot: Slot | None = None
        self._writing: Future[None] | None = None

    def __repr__(self) -> str:
        return f"BackgroundSave({self._slot if self._writing else 'nothing'})"

    def start(self, slot: Slot | None, write: Callable[[], None]) -> None:
        """`write` runs in a thread, and must seal the slot. A rank that is not to commit gives none."""
        assert self._writing is None, "the save before is not finished"
        self._slot = slot
        thread = ThreadPoolExecutor(1, thread_name_prefix="instep-checkpoint")
        self._writing = thread.submit(write)
        thread.shutdown(wait=False)

    def commit_if_written(self) -> None:
        """Commits it if it is written. Does not wait for the writing; for etcd, as long as any commit does."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> bool:
        """Waits until it is written, and commits it. False when that failed, or is not known yet: the log says why."""
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
        except Fenced:  # another leads, and the log says so
            return False
        except CheckpointError as error:
            if slot is not None:
                report_failure(error, slot)
            return False
        return commit(slot, self._committed) is True


log = logging.getLogger("instep")


@contextmanager
def abandon_on_error(slot: Slot) -> Iterator[None]:
    """In the training thread only. Raises Fenced where the directory is gone: a newer leader has cleaned it away."""
    try:
        yield
    except BaseException as error:
        was_removed = isinstance(error, CheckpointError) and not slot.path.is_dir()
        slot.abandon()
        if not was_removed:
            raise
        log.warning("%s was removed while it was written, as a newer leader does: this attempt is given up", slot.path)
        text = f"the directory of the checkpoint of step {slot.step} was removed while it was written"
        raise Fenced(text, token=slot.token) from error


@contextmanager
def as_checkpoint_error(slot: Slot) -> Iterator[None]:
    """CheckpointError, with a cure, for what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise trouble(slot.step, slot.path, error) from error


def commit(slot: Slot, committed: Callable[[Slot], object]) -> bool | None:
    """True: it is committed, and `committed` was called with it. False: it is not, or not yet, and the log says why.
    None: another leads."""
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
    """What takes the reason for a failed save to the operators: a slot, or the registry for a step without one."""

    def note_failed(self, error: Exception, /) -> None:
        """See Checkpoints.note_failed."""


@dataclass(frozen=True, slots=True)
class UnopenedSlot:
    """A save for which no directory could be made."""

    registry: Checkpoints
    step: int

    def note_failed(self, error: Exception, /) -> None:
        self.registry.note_failed(self.step, str(error))


def report_failure(error: Exception, told: FailureRecorder) -> None:
    """An error in the log and for operators, because somebody must act; training continues."""
    told.note_failed(error)
    log.error("%s; training goes on without this checkpoint", error)
