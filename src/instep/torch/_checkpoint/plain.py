"""Saves a state that every rank holds completely: the leader alone writes it, one file per part."""

from __future__ import annotations

import logging
import time
from typing import Final

from instep.errors import CheckpointError, EtcdUnavailable, Fenced

from .background_save import UnopenedSlot, abandon_on_error, commit, report_failure
from .parts import on_cpu
from .save_election import SaveElection, SaveVerdict
from .saver import MAX_ATTEMPTS, BaseSaver

log = logging.getLogger("instep")

POLL_S: Final = 1.0
ASK_S: Final = 5.0
"""A rank that waits for the saver first checks after this time whether etcd still answers, then less often."""
MAX_ASK_S: Final = 60.0


class PlainSaver(BaseSaver):
    """Saves with one rank, the leader.

    Promise: when `save` returns True, the current leader has committed a checkpoint of this step. Limit: without etcd,
    nothing is committed, and `save` returns False after some seconds."""

    layout = "plain"

    def save(self, step: int) -> bool:
        self.background_save.finish()
        return self._start(step) if self.background else self._save_or_wait(step)

    def verifies(self, number: int, name: str) -> bool:
        """Whether this rank verifies the file before loading: every one, because it loads all of them."""
        return True

    def problem_of_any_rank(self, problem: str | None) -> str | None:
        """Every rank has verified all files, so all have found the same problem."""
        return problem

    # -- in the foreground --------------------------------------------------------------------------------------------

    def _save_or_wait(self, step: int) -> bool:
        election = SaveElection(step, time.monotonic())
        for _ in range(MAX_ATTEMPTS):
            verdict = self._await_verdict(election)
            if verdict is not SaveVerdict.LEAD:
                return self._outcome(election, verdict)
            done = self._save_as_leader(step)
            if done is not None:
                return done
            self.registry.wait(lambda: not self.run.leads, POLL_S)
            election.restart_wait(time.monotonic())
        return self._outcome(election, SaveVerdict.NOBODY)

    def _await_verdict(self, election: SaveElection) -> SaveVerdict:
        """Waits until the saver finishes or is replaced. Gives up if etcd does not answer."""
        pause_s = ASK_S
        ask_at = time.monotonic() + pause_s
        while True:
            if self.registry.wait(lambda: self._poll(election) is not SaveVerdict.WAIT, POLL_S):
                verdict = self._poll(election)
                if verdict is not SaveVerdict.NOBODY or not self._may_begin_yet(election):
                    return verdict
                election.wait_longer()
            if time.monotonic() >= ask_at:
                try:
                    self.registry.list()
                except EtcdUnavailable as error:
                    log.warning("rank %d: %s", self.run.rank, error)
                    return SaveVerdict.NOBODY
                pause_s = min(2 * pause_s, MAX_ASK_S)
                ask_at = time.monotonic() + pause_s

    def _may_begin_yet(self, election: SaveElection) -> bool:
        if election.begun or election.waits_longer:
            return False
        try:
            return self.registry.inventory().led
        except EtcdUnavailable as error:
            log.warning("rank %d: %s", self.run.rank, error)
            return False

    def _poll(self, election: SaveElection) -> SaveVerdict:
        saving = self.registry.saving
        self._note()
        return election.decide(
            saved=self.registry.has(election.step),
            leads=self.run.leads,
            saving=saving.step if saving is not None else None,
            now=time.monotonic(),
        )

    def _outcome(self, election: SaveElection, verdict: SaveVerdict) -> bool:
        if verdict is SaveVerdict.SAVED:
            return True
        what = "its saver abandoned it" if election.begun else "no rank has started it"
        log.warning(
            "rank %d knows of no checkpoint of step %d: %s; training continues",
            self.run.rank,
            election.step,
            what,
        )
        return False

    def _save_as_leader(self, step: int) -> bool | None:
        """Writes and commits. True: committed. False: not, or not yet. None: another rank leads."""
        try:
            slot = self._open(step)
            with abandon_on_error(slot):
                self._write(slot, self._states())
                slot.seal()
        except Fenced:
            return None
        except CheckpointError as error:
            report_failure(error, UnopenedSlot(self.registry, step))
            return False
        return commit(slot, self.cleanup.after_commit)

    # -- in the background --------------------------------------------------------------------------------------------

    def _start(self, step: int) -> bool:
        """Starts the background save. Only the leader does anything, and only blocks while it copies its state."""
        self._note()
        if not self.run.leads:
            return True
        try:
            slot = self._open(step)
        except Fenced:
            return True
        except CheckpointError as error:
            report_failure(error, UnopenedSlot(self.registry, step))
            return False
        with abandon_on_error(slot):
            state = on_cpu(self._states())

        def write() -> None:
            self._write(slot, state)
            slot.seal()

        self.background_save.start(slot, write)
        return True

    # -- foreground and background ------------------------------------------------------------------------------------

    def _note(self) -> None:
        """Notes saves of other ranks, as far as this rank knows of them."""
        saving, saved = self.registry.saving, self.registry.saved
        if saving is not None:
            self.cleanup.note(saving.step, saving.token)
        if saved is not None:
            self.cleanup.note_committed(saved.id)
