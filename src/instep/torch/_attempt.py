"""One attempt at a checkpoint: written, then committed or given up. What goes wrong with it does not end a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from instep.errors import CheckpointError, Fenced
from instep.worker.checkpoints import Checkpoints
from instep.worker.slot import Slot, trouble

log = logging.getLogger("instep")


@contextmanager
def given_up_on_error(slot: Slot) -> Iterator[None]:
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
def told_as_trouble(slot: Slot) -> Iterator[None]:
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


class Told(Protocol):
    """What takes the reason for a failed save to the operators: a slot, or the registry for a step without one."""

    def note_failed(self, error: Exception, /) -> None:
        """See Checkpoints.note_failed."""


@dataclass(frozen=True, slots=True)
class Unopened:
    """A save for which no directory could be made."""

    registry: Checkpoints
    step: int

    def note_failed(self, error: Exception, /) -> None:
        self.registry.note_failed(self.step, str(error))


def report_failure(error: Exception, told: Told) -> None:
    """An error in the log and for operators, because somebody must act; training continues."""
    told.note_failed(error)
    log.error("%s; training goes on without this checkpoint", error)
