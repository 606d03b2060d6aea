"""The node's part in the run's checkpoints: commits and queries of its workers, and news for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from instep.agent.checkpoint_vote import CheckpointPins, CheckpointVote
from instep.agent.context import Component, Context
from instep.agent.retrying_writer import ATTEMPT_S
from instep.agent.workers import LocalWorker
from instep.errors import EtcdError
from instep.etcd import KeyValue, TxnResult
from instep.protocol import checkpoints
from instep.protocol.checkpoints import CheckpointReads, CommitOutcome
from instep.protocol.records import FailedSave, Manifest, Pointer, Saving, WorkerId
from instep.protocol.transactions import Txn
from instep.recipes.fence import Fence
from instep.wire import messages as wire

log = logging.getLogger("instep")

SAVING_S: Final = 600.0
"""A leader that saves may pass no boundary for so long, or for 5 times its longest save, without counting as
stalled."""
OUTCOMES_KEPT: Final = 100
QUERY_S: Final = 4.0
"""Each query is answered in this time, if only with the problem: the worker waits one second longer."""
MAX_LISTED_BYTES: Final = 2 * 1024 * 1024
"""Upper bound for the manifests in one answer; the oldest are left out. The answer has all ids."""
ADOPT_TRIES: Final = 3
MAX_REASON: Final = 500
FORGET_S: Final = 3.0
"""Time limit for removing checkpoints from the registry; the caller asks again for the rest."""


class CheckpointRegistry(Component):
    """Promise: each commit is retried until etcd answers, one at a time, in order of arrival. Its worker receives the
    outcome. A commit that is sent again, to this agent or the next, has the same outcome."""

    def __init__(self, context: Context, pins: CheckpointPins, vote: CheckpointVote) -> None:
        super().__init__(context)
        self._writing = asyncio.Lock()
        self._announced: Saving | None = None
        self._told: wire.CheckpointNews | None = None
        self._failed: FailedSave | None = None
        """A failed save that is not yet written."""
        self._outcomes: dict[str, tuple[Manifest, CommitOutcome]] = {}
        """The last commit of each directory. A directory that was deleted may be used again."""
        self._patience_s = SAVING_S
        self._pins = pins
        self._vote = vote

    def __repr__(self) -> str:
        return f"CheckpointRegistry({self._announced or 'nothing announced'}, {self._pins!r}, {self._vote!r})"

    # -- what workers say -------------------------------------------------------------------------------------------

    def handle(self, worker: LocalWorker, message: wire.FromWorker) -> None:
        match message:
            case wire.SaveStarted(saving, candidate):
                worker.excused_until = time.monotonic() + self._patience_s
                self._announce(Fence(candidate, saving.token), saving)
            case wire.SaveAbandoned(checkpoint_id):
                worker.excused_until = time.monotonic()
                self._withdraw(checkpoint_id)
            case wire.SaveFailed():
                self._note_failed(worker, message)
            case wire.CommitCheckpoint():
                self._take_commit(worker, message)
            case wire.ListCheckpoints(q):
                self._answer(worker, q, lambda: self._list(q))
            case wire.ForgetCheckpoints(q, ids):
                self._answer(worker, q, lambda: self._forget(q, ids))
            case wire.AdoptCheckpoints(q):
                self._answer(worker, q, lambda: self._adopt(message))
            case wire.ReadCheckpoint(checkpoint_id, asked) if asked is not None:
                self._answer(worker, asked, lambda: self._mark(asked, checkpoint_id))
            case wire.AskVoters(q):
                self._answer(worker, q, lambda: self._missing(q))

    # -- what they learn --------------------------------------------------------------------------------------------

    def follow(self) -> None:
        news = self._news()
        if news != self._told:
            self._told = news
            for worker in self._workers:
                worker.send(news)

    def welcome(self, worker: LocalWorker) -> None:
        worker.send(self._news())

    def _news(self) -> wire.CheckpointNews:
        state = self._state
        saving = state.saving
        leads = state.leader is not None and saving is not None and saving.token == state.leader.token
        return wire.CheckpointNews(state.saved, saving if leads else None)

    # -- saving -----------------------------------------------------------------------------------------------------

    def _announce(self, fence: Fence, saving: Saving) -> None:
        if saving != self._announced:
            self._announced = saving
            self._writer.start(self._write_if(saving, checkpoints.announce(self._keys, fence, saving)))

    def _withdraw(self, checkpoint_id: str) -> None:
        saving = self._announced
        if saving is not None and saving.id == checkpoint_id:
            self._announced = None
            self._writer.start(self._write_if(None, checkpoints.withdraw(self._keys, saving)))

    async def _write_if(self, saving: Saving | None, txn: Txn) -> None:
        """Skips the write if another save is announced by then."""

        async def attempt() -> None:
            if self._announced is saving:
                await self._send(txn)

        async with self._writing:
            await self._writer.retry_until_done(attempt)

    def _take_commit(self, worker: LocalWorker, message: wire.CommitCheckpoint) -> None:
        manifest = replace(message.manifest, node=self._node)
        self._patience_s = max(self._patience_s, 5 * manifest.duration_s)
        worker.excused_until = time.monotonic()
        outcome = self._known_outcome(manifest)
        if outcome is not None:
            self._send_outcome(worker.id, manifest, outcome)
        else:
            self._writer.start(self._commit(worker.id, Fence(message.candidate, manifest.token), manifest))

    async def _commit(self, saver: WorkerId, fence: Fence, manifest: Manifest) -> None:
        async with self._writing:
            outcome = self._known_outcome(manifest)
            if outcome is None:
                outcome = await self._writer.retry_until_done(lambda: self._try_commit(fence, manifest))
                self._remember(manifest, outcome)
        self._send_outcome(saver, manifest, outcome)

    def _known_outcome(self, manifest: Manifest) -> CommitOutcome | None:
        recorded, outcome = self._outcomes.get(manifest.path, (None, None))
        return outcome if checkpoints.is_same(recorded, manifest) else None

    def _remember(self, manifest: Manifest, outcome: CommitOutcome) -> None:
        """A repeated commit has the same outcome, even if the checkpoint has been forgotten since."""
        self._outcomes[manifest.path] = (manifest, outcome)
        if len(self._outcomes) > OUTCOMES_KEPT:
            del self._outcomes[next(iter(self._outcomes))]
        if self._announced is not None and self._announced.id == manifest.id:
            self._announced = None

    def _send_outcome(self, saver: WorkerId, manifest: Manifest, outcome: CommitOutcome) -> None:
        problem = None if outcome is CommitOutcome.COMMITTED else self._fenced(manifest)
        if problem is None:
            log.info("checkpoint %s is committed", manifest.id)
        else:
            log.warning("checkpoint %s is refused: %s", manifest.id, problem)
        self._send_to(saver, wire.CommitResult(manifest.id, manifest.path, problem))

    async def _try_commit(self, fence: Fence, manifest: Manifest) -> CommitOutcome:
        keys = self._keys
        while True:
            looked = await self._send(Txn((), checkpoints.look(keys, manifest.id, fence)))
            found = CheckpointReads(*looked.found)
            outcome = checkpoints.outcome(manifest, fence, found)
            if outcome is not CommitOutcome.OPEN:
                return outcome
            lineage = await self._lineage(found) or manifest.lineage  # known to the worker if etcd has lost the pointer
            manifest = replace(manifest, lineage=lineage)
            announced = self._announced is not None and self._announced.id == manifest.id
            txn = checkpoints.commit(keys, fence, manifest, found, announced=announced)
            if (await self._send(txn)).succeeded:
                return CommitOutcome.COMMITTED

    async def _lineage(self, found: CheckpointReads) -> tuple[str, ...]:
        pointer = found.newest
        newest: Manifest | None = None
        if pointer is not None:
            item = await self._client.get(self._keys.checkpoint(pointer.id), timeout_s=ATTEMPT_S)
            newest = Manifest.decode_or_none(item.value) if item is not None else None
        return checkpoints.lineage(found, newest, self._state.resume, self._state.resume_revision)

    def _fenced(self, manifest: Manifest) -> str:
        leader = self._state.leader
        other = leader is not None and leader.token != manifest.token
        who = f"rank {leader.rank} leads now" if leader is not None and other else "its token is no longer valid"
        return (
            f"rank {manifest.rank} no longer leads the run ({who}), so its checkpoint of step {manifest.step} does not "
            f"count; what it wrote to {manifest.path} may be deleted"
        )

    def _note_failed(self, worker: LocalWorker, message: wire.SaveFailed) -> None:
        failed = FailedSave(
            step=message.step,
            rank=worker.rank,
            host=worker.member.host,
            text=message.text[:MAX_REASON],
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if self._failed is None:
            self._writer.start(self._write_failed())
        self._failed = failed  # only the newest of several is written

    async def _write_failed(self) -> None:
        async def attempt() -> None:
            while (failed := self._failed) is not None:
                found = await self._client.get(self._keys.failed_saves, timeout_s=ATTEMPT_S)
                txn = checkpoints.note_failed(self._keys, found, failed)
                if (txn is None or (await self._send(txn)).succeeded) and self._failed is failed:
                    self._failed = None

        await self._writer.retry_until_done(attempt)

    # -- queries ----------------------------------------------------------------------------------------------------

    def _answer(self, worker: LocalWorker, q: int, find: Callable[[], Awaitable[wire.QueryResult]]) -> None:
        self._answer_query(worker, q, find, limit_s=QUERY_S, about=" about the run's checkpoints")

    async def _list(self, q: int) -> wire.Inventory:
        listing = await self._client.range(self._keys.checkpoints, timeout_s=QUERY_S)
        pointer = next((item for item in listing.kvs if item.key == self._keys.latest), None)
        newest = Pointer.decode_or_none(pointer.value) if pointer is not None else None
        first = self._keys.checkpoint(newest.id) if newest is not None else ""  # others may have been adopted since

        def age(item: KeyValue) -> tuple[bool, int]:
            return item.key == first, item.mod_revision

        items = sorted((item for item in listing.kvs if item is not pointer), key=age, reverse=True)
        found: list[Manifest] = []
        ids: list[str] = []
        room = MAX_LISTED_BYTES
        for item in items:
            ids.append(item.key.removeprefix(self._keys.checkpoints))
            manifest = Manifest.decode_or_none(item.value)
            room -= len(item.value)
            if manifest is not None and room > 0 and item.key == self._keys.checkpoint(manifest.id):
                found.append(manifest)
        first_id = newest.id if newest is not None else None
        return wire.Inventory(q, tuple(found), frozenset(ids), first_id, self._state.leader is not None)

    async def _forget(self, q: int, ids: Iterable[str]) -> wire.CheckpointIds:
        """Raises EtcdError if not even the first could be removed; otherwise returns those that were."""
        gone: list[str] = []
        try:
            async with asyncio.timeout(FORGET_S):
                await self._forget_each(ids, gone)
        except (EtcdError, TimeoutError) as error:
            if not gone and isinstance(error, EtcdError):
                raise
            log.warning("some checkpoints are not forgotten yet: %s", str(error) or f"that took {FORGET_S:g} s")
        log.info("forgotten: %s", ", ".join(gone) or "no checkpoint")
        return wire.CheckpointIds(q, tuple(gone))

    async def _forget_each(self, ids: Iterable[str], gone: list[str]) -> None:
        pointer = await self._client.get(self._keys.latest, timeout_s=ATTEMPT_S)
        for checkpoint_id in ids:
            txn = checkpoints.forget(self._keys, checkpoint_id, pointer)
            if txn is not None and (await self._send(txn)).succeeded:
                gone.append(checkpoint_id)

    async def _adopt(self, message: wire.AdoptCheckpoints) -> wire.CheckpointIds:
        """Returns the ids that are registered now. Raises EtcdError."""
        fence = Fence(message.candidate, message.token)
        there = [item.id for item in message.manifests if await self._adopt_one(fence, item)]
        log.warning("adopted checkpoints that etcd had no record of: %s", ", ".join(there) or "none")
        return wire.CheckpointIds(message.q, tuple(there))

    async def _adopt_one(self, fence: Fence, manifest: Manifest) -> bool:
        for _ in range(ADOPT_TRIES):
            looked = await self._send(Txn((), checkpoints.look(self._keys, manifest.id)))
            txn = checkpoints.adopt(self._keys, manifest, CheckpointReads(*looked.found), fence)
            if txn is None or (await self._send(txn)).succeeded:
                return True
        return False  # another rank leads, or the registry changes too often

    async def _mark(self, q: int, checkpoint_id: str) -> wire.CheckpointIds:
        is_there = await self._pins.mark(checkpoint_id) is not None
        return wire.CheckpointIds(q, (checkpoint_id,) if is_there else ())

    async def _missing(self, q: int) -> wire.MissingRanks:
        return wire.MissingRanks(q, await self._vote.missing())

    async def _send(self, txn: Txn) -> TxnResult:
        return await self._client.txn(txn.compares, txn.then, timeout_s=ATTEMPT_S)
