"""One save in the background: written by a thread, committed by the training thread once all of it is written."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from instep.errors import CheckpointError, Fenced
from instep.worker.slot import Slot

from ._attempt import commit, given_up_on_error, report_failure


class Later:
    """At most one at a time. The thread ends with its save; an interpreter that exits waits for it.

    `committed` is called with each slot that was committed, in the training thread.
    """

    def __init__(self, committed: Callable[[Slot], object]) -> None:
        self._committed = committed
        self._slot: Slot | None = None
        self._writing: Future[None] | None = None

    def __repr__(self) -> str:
        return f"Later({self._slot if self._writing else 'nothing'})"

    def start(self, slot: Slot | None, write: Callable[[], None]) -> None:
        """`write` runs in a thread, and must seal the slot. A rank that is not to commit gives none."""
        assert self._writing is None, "the save before is not finished"
        self._slot = slot
        thread = ThreadPoolExecutor(1, thread_name_prefix="instep-checkpoint")
        self._writing = thread.submit(write)
        thread.shutdown(wait=False)

    def look(self) -> None:
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
            with given_up_on_error(slot):
                writing.result()
        except Fenced:  # another leads, and the log says so
            return False
        except CheckpointError as error:
            if slot is not None:
                report_failure(error, slot)
            return False
        return commit(slot, self._committed) is True
