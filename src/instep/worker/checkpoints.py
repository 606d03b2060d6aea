"""A worker's part in the run's checkpoints: saves them if it leads, and agrees on the one to resume from."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeAlias, TypeVar

from instep.errors import BarrierTimeout, CheckpointError, EtcdUnavailable, Fenced, InstepError
from instep.wire import messages as wire
from instep.wire.documents import Manifest, Pointer, Saving
from instep.worker.agent_session import AgentSession
from instep.worker.agreement import Agreement
from instep.worker.barrier import named
from instep.worker.checkpoint_inbox import CheckpointInbox
from instep.worker.slot import Layout, Saver, Slot, make_directory, step_index, write_error

log = logging.getLogger("instep")

COMMIT_WAIT_S: Final = 5.0
ANSWER_S: Final = 5.0
RESUME_S: Final = 600.0
LINEAGE: Final = 20
"""Upper bound for the ancestors that a checkpoint names."""

A = TypeVar("A", bound=wire.QueryResult)

Verify: TypeAlias = Callable[[Manifest], str | None]
"""None for a checkpoint that this rank can resume from, else what is wrong with it, in one sentence."""


class Checkpoints:
    """What `run.checkpoints` is. Use it in the training thread only.

    `saved` is the newest committed checkpoint and `saving` the one that the leader is writing, as last reported.
    `refused` says by id why checkpoints could not be resumed from.
    """

    def __init__(
        self,
        session: AgentSession,
        agreement: Agreement[Any],
        *,
        run: str,
        namespace: str,
        next_step: Callable[[], int],
    ) -> None:
        self.run = run
        self.namespace = namespace
        self._session = session
        self._inbox: CheckpointInbox = session.inbox
        self._agreement = agreement
        self._next_step = next_step
        self._saved_by: tuple[object, int] | None = None
        self._line: tuple[str, ...] = ()
        """Ids of the checkpoints that this training resumed from, the newest first."""
        self._went_back: object = None
        self._has_asked = False
        self.refused: dict[str, str] = {}
        self._kept: tuple[str, int] | None = None
        """The checkpoint that the node's agent keeps until this worker's next boundary, and that boundary."""
        self._background: list[tuple[Callable[[], object], Callable[[], object]]] = []

    def __repr__(self) -> str:
        return f"Checkpoints(rank {self._session.rank}, {self._inbox!r})"

    def claim(self, saver: object, step: int) -> bool:
        """False if another saver has saved that step: each would take the other's checkpoint for its own."""
        if self._saved_by is not None and self._saved_by[1] == step and self._saved_by[0] is not saver:
            return False
        self._saved_by = (saver, step)
        return True

    # -- what is known ----------------------------------------------------------------------------------------------

    @property
    def saved(self) -> Pointer | None:
        return self._inbox.saved

    @property
    def saving(self) -> Saving | None:
        return self._inbox.saving

    def has(self, step: int) -> bool:
        """Whether a checkpoint of `step` or a later one was committed, as last reported, since the last fresh start
        and the last return to a checkpoint. Earlier ones belong to a training that the run has left."""
        saved, agreement = self._inbox.saved, self._agreement
        if saved is None or saved.step < step:
            return False
        return saved.view >= agreement.origin and saved.plan >= agreement.back

    def is_own(self, manifest: Manifest) -> bool:
        """Whether it was saved since the last fresh start."""
        return manifest.view >= self._agreement.origin

    @property
    def has_asked(self) -> bool:
        """Whether this process has asked what to resume from, or has read a checkpoint."""
        return self._has_asked

    @property
    def token(self) -> int:
        """The fencing token of this worker while it leads, else 0."""
        return self._session.token

    @property
    def passed_over(self) -> Pointer | None:
        """The newest checkpoint, if it belongs to an earlier start of the run and this process has neither asked
        what to resume from nor read one. The first save would replace it."""
        saved = self._inbox.saved
        if self._has_asked or saved is None or saved.view >= self._agreement.origin:
            return None
        return saved

    def list(self) -> tuple[Manifest, ...]:
        """The committed checkpoints, the newest first, up to 2 MiB of records. Raises EtcdUnavailable after 5 s at
        most."""
        return self.inventory().manifests

    def inventory(self) -> wire.Inventory:
        """The contents of the registry, including ids that `list` has no room for. Raises EtcdUnavailable after 5 s
        at most."""
        return self._ask(wire.ListCheckpoints, wire.Inventory)

    def wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        """Processes messages until the condition holds; False if it did not in time."""
        return self._session.wait_until(until, timeout_s, self._next_step())

    # -- saving -----------------------------------------------------------------------------------------------------

    def open(self, step: int, folder: str | os.PathLike[str] = "checkpoints", layout: Layout = "custom") -> Slot:
        """A new directory below `folder` for a checkpoint of `step`. Raises Fenced if this worker does not lead, and
        CheckpointError if the directory cannot be created."""
        index = step_index(step)
        if not self._leads():
            raise Fenced(f"rank {self._session.rank} does not lead the run: its leader saves the checkpoints", token=0)
        return self._open(index, folder, layout)

    def _warn_of_passed_over(self) -> None:
        saved = self.passed_over
        if saved is not None:
            self._has_asked = True  # warn once
            log.warning(
                "the run has checkpoint %s of an earlier start, and this process has not resumed from it: the one that "
                "is saved now replaces it; call run.checkpoints.resume() before the first step",
                saved.id,
            )

    def _leads(self) -> bool:
        """As of now, as far as the node's agent has reported."""
        self._session.exchange(self._next_step())
        return self._session.leads

    def _open(self, index: int, folder: str | os.PathLike[str], layout: Layout) -> Slot:
        session, agreement = self._session, self._agreement
        saver = Saver(
            run=self.run,
            namespace=self.namespace,
            rank=session.rank,
            world_size=session.world_size,
            view=session.view,
            token=session.token,
            candidate=session.candidate,
            config=agreement.values,
            plan=agreement.plan,
            lineage=self._lineage(),
        )
        slot = Slot(index, make_directory(folder, index, saver.token), layout, saver, self)
        self._inbox.begin(str(slot.path))
        saving = Saving(slot.id, index, slot.token, session.rank)
        started = wire.SaveStarted(saving, saver.candidate)
        session.send(self._inbox.repeat_to_agents("save", started))
        return slot

    def _lineage(self) -> tuple[str, ...]:
        """The checkpoints that this training resumed from, and the later ones that this worker knows of."""
        handlers, saved = self._agreement.handlers, self._inbox.saved
        if handlers.went_back is not None and handlers.went_back is not self._went_back:
            self._went_back = handlers.went_back
            self._line = (handlers.went_back.id, *handlers.went_back.lineage)
        if saved is not None and saved.id not in self._line and self.has(saved.step):
            self._line = (saved.id, *self._line)
        self._line = self._line[:LINEAGE]
        return self._line

    @contextmanager
    def checkpoint(self, step: int, folder: str | os.PathLike[str], layout: Layout) -> Iterator[Slot | None]:
        """See `Run.checkpoint`."""
        index = step_index(step)
        if not self._leads():
            yield None
            return
        self._warn_of_passed_over()
        slot = self._open(index, folder, layout)
        try:
            yield slot
        except BaseException as error:
            slot.abandon()
            if isinstance(error, OSError):
                refused = write_error(slot.step, slot.path, error)
                slot.note_failed(refused)
                raise refused from error
            raise
        try:
            slot.commit()
        except CheckpointError as error:
            slot.note_failed(error)
            raise

    def commit(self, message: wire.CommitCheckpoint) -> bool:
        """Commits a slot and waits, at most 5 s. Raises Fenced."""
        inbox, manifest = self._inbox, message.manifest
        step = self._next_step()
        if inbox.outcome(manifest.path) is None:
            inbox.stop_repeating("save")
            self._session.send(inbox.commit(message))
        if not self._session.wait_until(lambda: inbox.outcome(manifest.path) is not None, COMMIT_WAIT_S, step):
            log.warning(
                "checkpoint %s is not committed yet: etcd has not answered in %.0f s; the agent retries",
                manifest.id,
                COMMIT_WAIT_S,
            )
            return False
        outcome = inbox.outcome(manifest.path)
        assert outcome is not None
        if outcome.problem is not None:
            raise Fenced(outcome.problem, token=manifest.token)
        return True

    def give_up(self, checkpoint_id: str) -> None:
        """For a slot that is abandoned."""
        self._inbox.stop_repeating("save")
        self._session.send(wire.SaveAbandoned(checkpoint_id))

    def note_failed(self, step: int, text: str) -> None:
        """Reports that a checkpoint of `step` could not be saved and training continues: operators see it in the
        status and the history. Lost if the node's agent dies."""
        self._session.send(wire.SaveFailed(step, text))

    def in_background(self, look: Callable[[], object], finish: Callable[[], object]) -> None:
        """For a saver that writes in the background: `look` is called at boundaries, about once a second or more
        often, and `finish` when the training has ended well."""
        self._background.append((look, finish))

    def look(self) -> None:
        """At a boundary."""
        self._lineage()
        for look, _ in self._background:
            look()

    def finish(self) -> None:
        """Called before this worker leaves."""
        for _, finish in self._background:
            finish()

    def settle(self, timeout_s: float) -> None:
        """Before this worker leaves: waits for unanswered commits."""
        with suppress(InstepError):  # an evicted worker gets no more answers
            self._session.wait_until(lambda: not self._inbox.open_commits, timeout_s, self._next_step())

    # -- forgetting -------------------------------------------------------------------------------------------------

    def forget(self, ids: Iterable[str]) -> tuple[str, ...]:
        """Removes checkpoints from the registry and returns the ids that are removed: their files may be deleted.
        Never removes the newest, one that a worker reads, or one whose commit is unanswered, because it would be
        committed again. Ends after 3 s, however many are left: ask again. Raises EtcdUnavailable after 5 s at most;
        some may be removed then."""
        closed = tuple(item for item in ids if item not in self._inbox.open_commits)
        return self._ask(lambda q: wire.ForgetCheckpoints(q, closed), wire.CheckpointIds).ids

    def adopt(self, records: Iterable[Manifest]) -> tuple[str, ...]:
        """Registers checkpoints whose records etcd has lost, if this worker leads. `records`: as `find_checkpoints`
        returns them. Returns the ids that are registered now. Raises EtcdUnavailable after 5 s at most; some may be
        registered then."""
        manifests, session = tuple(records), self._session
        return self._ask(
            lambda q: wire.AdoptCheckpoints(q, manifests, session.token, session.candidate), wire.CheckpointIds
        ).ids

    # -- resuming from one -------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self, manifest: Manifest) -> Iterator[None]:
        """Keeps the checkpoint from being forgotten while the block runs. Raises CheckpointError if it was forgotten
        already, and EtcdUnavailable; not for the checkpoint that `resume` has just returned, which the node's agent
        keeps until the next boundary. Limit: the pin is on the node's lease, and ends with it."""
        self._inbox.repeat_to_agents(f"read {manifest.id}", wire.ReadCheckpoint(manifest.id))
        self._has_asked = True
        try:
            if not self._is_there(manifest.id):
                raise CheckpointError(f"checkpoint {manifest.id} was forgotten: choose another one")
            yield
        finally:
            self._inbox.stop_repeating(f"read {manifest.id}")
            self._session.send(wire.ReadDone(manifest.id))

    def _is_there(self, checkpoint_id: str) -> bool:
        try:
            return checkpoint_id in self._ask(lambda q: wire.ReadCheckpoint(checkpoint_id, q), wire.CheckpointIds).ids
        except EtcdUnavailable as error:
            if self._kept != (checkpoint_id, self._next_step()):
                raise
            log.warning("checkpoint %s is read anyway, because it was just agreed on: %s", checkpoint_id, error)
            return True

    def resume(self, verify: Verify = lambda manifest: None, timeout_s: float = RESUME_S) -> Manifest | None:
        """The checkpoint that all ranks resume from: the newest that every rank has verified. Call it on all ranks
        before the first step. None if there is none; then `refused` says why, by id.

        Raises BarrierTimeout, with the ranks that have not called it. Raises CheckpointError if a rank that joins a
        training cannot use its checkpoint.
        """
        self._has_asked = True
        deadline = time.monotonic() + timeout_s
        inbox, step = self._inbox, self._next_step()
        inbox.drop_offer()
        self._session.send(inbox.repeat_to_agents("resume", wire.AwaitOffer()))
        verified: set[tuple[int, str]] = set()
        try:
            while True:
                offer = inbox.offer
                if offer is not None:
                    if offer.final:
                        return self._resumed(offer, verified, verify)
                    self._vote(offer, verified, verify)
                left_s = deadline - time.monotonic()
                if not self._session.wait_until(lambda seen=offer: inbox.offer is not seen, left_s, step):  # type: ignore[misc]
                    raise self._timed_out(timeout_s)
        finally:
            inbox.stop_repeating("resume", "vote")

    def _vote(self, offer: wire.Offer, verified: set[tuple[int, str]], verify: Verify) -> None:
        """`offer` is not final, so it has an id and a manifest."""
        assert offer.id is not None
        assert offer.manifest is not None
        problem = _problem(offer.manifest, verify)
        verified.add((offer.view, offer.id))
        self._session.send(self._inbox.repeat_to_agents("vote", wire.Vote(offer.view, offer.id, problem)))

    def _resumed(self, offer: wire.Offer, verified: set[tuple[int, str]], verify: Verify) -> Manifest | None:
        self.refused = dict(offer.reasons)
        for checkpoint_id, why in self.refused.items():
            log.warning("checkpoint %s cannot be resumed from: %s", checkpoint_id, why)
        if offer.id is None:
            return None
        manifest = offer.manifest
        if manifest is None:
            raise CheckpointError(f"checkpoint {offer.id}, which the others resumed from, was forgotten")
        voted = any(checkpoint_id == manifest.id for _, checkpoint_id in verified)
        problem = None if voted else _problem(manifest, verify)
        if problem is not None:
            raise CheckpointError(f"the others resumed from checkpoint {manifest.id}, and this rank cannot: {problem}")
        self._kept = (manifest.id, self._next_step())
        self._line = (manifest.id, *manifest.lineage)
        self._agreement.continue_from(manifest.id, manifest.step, view=manifest.view, plan=manifest.plan)
        return manifest

    def _timed_out(self, waited_s: float) -> InstepError:
        try:
            ranks = self._ask(wire.AskVoters, wire.MissingRanks).ranks
        except InstepError as error:
            return BarrierTimeout(
                f"the ranks did not agree on a checkpoint to resume from in {waited_s:g} s; {error}", waited_s=waited_s
            )
        missing = [f"rank {rank}" for rank in ranks]
        text = (
            f"the ranks did not agree on a checkpoint to resume from in {waited_s:g} s: "
            f"{named(missing) or 'nobody'} has not answered; every rank must call resume before its first step"
        )
        return BarrierTimeout(text, waited_s=waited_s, missing=missing, missing_count=len(missing))

    # -- asking the agent -------------------------------------------------------------------------------------------

    def _ask(self, query: Callable[[int], wire.Query], kind: type[A]) -> A:
        answer = self._session.ask(query, ANSWER_S, self._next_step())
        if isinstance(answer, kind):
            return answer
        if isinstance(answer, wire.QueryFailure):
            raise EtcdUnavailable(answer.problem)
        raise EtcdUnavailable(f"the node's agent has not answered in {ANSWER_S:g} s about the run's checkpoints")


def _problem(manifest: Manifest, verify: Verify) -> str | None:
    try:
        return verify(manifest)
    except OSError as error:
        return f"{error.filename or manifest.path} cannot be read: {error.strerror or error}"
