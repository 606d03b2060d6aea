"""The node's part in agreeing on the checkpoint to resume from: asks its workers and reports their answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from instep.agent.context import Component, Context
from instep.agent.retrying_writer import ATTEMPT_S
from instep.agent.workers import LocalWorker
from instep.errors import EtcdFull, LeaseLost
from instep.etcd import Compare, Op
from instep.protocol import checkpoints, resuming
from instep.protocol.records import Manifest, Resume, Verified, WorkerId
from instep.wire.messages import AwaitOffer, FromWorker, Offer, ReadCheckpoint, ReadDone, Vote

PARTIAL_S: Final = 1.0
"""If some ranks of the node have not answered so long after the first, the answers so far are reported: then the
missing ranks can be named."""


class CheckpointPins(Component):
    """One key per checkpoint, however many workers of the node read it. Promise: after `mark` has returned a manifest,
    the checkpoint is kept until no worker of this node reads it. Limit: while the lease lasts."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._by_checkpoint: dict[str, set[str]] = {}
        self._marked_at: dict[str, int] = {}
        """The revision of the newest mark, by checkpoint: a late deletion of an older mark must not remove it."""

    def __repr__(self) -> str:
        return f"CheckpointPins({', '.join(self._by_checkpoint) or 'none'})"

    def reads(self, reader: str, checkpoint_id: str) -> None:
        self._by_checkpoint.setdefault(checkpoint_id, set()).add(reader)

    def has_read(self, reader: str, checkpoint_id: str) -> None:
        readers = self._by_checkpoint.get(checkpoint_id, set())
        readers.discard(reader)
        if not readers and self._by_checkpoint.pop(checkpoint_id, None) is not None:
            self._writer.start(self._unmark(checkpoint_id))

    def handle(self, worker: LocalWorker, message: FromWorker) -> None:
        match message:
            case ReadCheckpoint(checkpoint_id):
                self.reads(str(worker.id), checkpoint_id)
            case ReadDone(checkpoint_id):
                self.has_read(str(worker.id), checkpoint_id)

    def gone(self, worker: LocalWorker, *, failed: bool) -> None:
        self.release(str(worker.id))

    def release(self, reader: str) -> None:
        """The reader no longer reads any checkpoint."""
        for checkpoint_id in list(self._by_checkpoint):
            if reader in self._by_checkpoint[checkpoint_id]:
                self.has_read(reader, checkpoint_id)

    async def mark(self, checkpoint_id: str) -> Manifest | None:
        """Returns the manifest, or None if the checkpoint was forgotten. Raises EtcdError."""
        lease_id = self._session.lease_id
        if not lease_id:
            raise LeaseLost("the node has no lease at present: try again", lease_id=0)
        txn = checkpoints.start_reading(self._keys, checkpoint_id, self._node, lease_id)
        result = await self._client.txn(txn.compares, txn.then, timeout_s=ATTEMPT_S)
        if not result.succeeded:
            return None
        self._marked_at[checkpoint_id] = result.revision
        record = result.found[-1]
        return Manifest.decode_or_none(record.value) if record is not None else None

    def on_lease(self) -> None:
        for checkpoint_id in list(self._by_checkpoint):
            self._writer.start(self._mark_again(checkpoint_id))

    async def _mark_again(self, checkpoint_id: str) -> None:
        async def attempt() -> None:
            if checkpoint_id in self._by_checkpoint and self._session.lease_id:
                await self.mark(checkpoint_id)

        await self._writer.retry_until_done(attempt)

    async def _unmark(self, checkpoint_id: str) -> None:
        key, marked_at = self._keys.reader(checkpoint_id, self._node), self._marked_at.pop(checkpoint_id, 0)

        async def attempt() -> None:
            if checkpoint_id in self._by_checkpoint:
                return
            try:
                unless_marked_again = [Compare.mod_revision(key, "<", marked_at + 1)] if marked_at else []
                await self._client.txn(unless_marked_again, [Op.delete(key)], timeout_s=ATTEMPT_S)
            except EtcdFull:  # a full database may refuse a transaction, but it deletes
                await self._client.delete(key, timeout_s=ATTEMPT_S)

        await self._writer.retry_until_done(attempt)


@dataclass(slots=True)
class VoteTally:
    """One checkpoint that the ranks of a view vote on, and the votes of this node."""

    view: int
    id: str
    manifest: Manifest | None = None
    marked: bool = False
    good: set[int] = field(default_factory=set)
    problem: str | None = None
    since: float = 0.0
    written: Verified | None = None

    def record(self) -> Verified:
        ranks = () if self.problem is not None else tuple(sorted(self.good))
        return Verified(view=self.view, id=self.id, ranks=ranks, problem=self.problem)


class CheckpointVote(Component):
    """Promise: a waiting rank receives each offer and the outcome; from then until its first boundary the checkpoint is
    not forgotten. A node writes a few keys at most for all its ranks."""

    def __init__(self, context: Context, pins: CheckpointPins, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(context)
        self._pins = pins
        self._clock = clock
        self._asking = asyncio.Lock()
        self._waiting: dict[WorkerId, Resume | None] = {}
        """Workers that want to resume, and the last offer that each received."""
        self._tally: VoteTally | None = None

    def __repr__(self) -> str:
        return f"CheckpointVote({len(self._waiting)} wait, {self._tally})"

    # -- what workers say -------------------------------------------------------------------------------------------

    def handle(self, worker: LocalWorker, message: FromWorker) -> None:
        match message:
            case AwaitOffer():
                self._waiting[worker.id] = None
                self.follow()
            case Vote():
                self._count(worker, message)

    def _count(self, worker: LocalWorker, message: Vote) -> None:
        tally = self._tally
        if tally is None or (message.view, message.id) != (tally.view, tally.id):
            return
        if message.problem is None:
            tally.good.add(worker.rank)
            tally.since = tally.since or self._clock()
        elif tally.problem is None:
            tally.problem = f"rank {worker.rank} on {worker.member.host}: {message.problem}"[:500]
        if tally.problem is not None or tally.good >= self._ranks_here():
            self._report(tally)

    def gone(self, worker: LocalWorker, *, failed: bool) -> None:
        self._waiting.pop(worker.id, None)
        self._pins.release(_voter(worker.id))

    # -- what they are asked ----------------------------------------------------------------------------------------

    def follow(self) -> None:
        """The run's state has changed, or a worker has asked: waiting workers get the current offer."""
        now = self._now()
        if now is None or all(told == now for told in self._waiting.values()):
            return
        self._writer.start(self._send_offer(now))

    def tick(self) -> None:
        tally = self._tally
        has_said = tally is not None and (tally.good or tally.problem is not None)
        if tally is not None and has_said and self._clock() - tally.since > PARTIAL_S:
            self._report(tally)
        for worker in self._workers:
            if worker.step >= 0:  # it has loaded the checkpoint
                self._pins.release(_voter(worker.id))

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    def repeat(self) -> None:
        """With the next tick."""
        if self._tally is not None:
            self._tally.written = None

    async def missing(self) -> tuple[int, ...]:
        """Ranks of the view that have not yet voted on the offer. Raises EtcdError."""
        view, now = self._state.view, self._now()
        if view is None or now is None or now.id is None:
            return ()
        listing = await self._client.range(self._keys.verified, timeout_s=ATTEMPT_S)
        records = [record for item in listing.kvs if (record := Verified.decode_or_none(item.value)) is not None]
        here = [self._tally.record()] if self._tally is not None else []
        return tuple(resuming.missing(view, now, [*records, *here]))

    def _now(self) -> Resume | None:
        view = self._state.view
        return resuming.asked(view, self._state.resume) if view is not None else None

    async def _send_offer(self, now: Resume) -> None:
        """Pins the checkpoint before any worker receives the offer."""
        async with self._asking:
            if now != self._now():
                return  # another task sends the newer offer
            tally = await self._put(now) if now.id is not None else None
            if now != self._now():
                return
            if tally is not None and tally.manifest is None and not now.final:
                tally.problem = tally.problem or resuming.GONE
                self._report(tally)
                return
            offer = Offer(now.view, now.id, now.final, now.reasons, tally.manifest if tally is not None else None)
            for worker in self._workers:
                if self._waiting.get(worker.id, now) != now:
                    self._waiting[worker.id] = now
                    if now.final:
                        del self._waiting[worker.id]
                    worker.send(offer)

    async def _put(self, now: Resume) -> VoteTally:
        """The tally about `now`, with its manifest and its pin."""
        assert now.id is not None
        tally = self._tally
        if tally is None or (tally.view, tally.id) != (now.view, now.id):
            for waiting in self._waiting:
                self._pins.release(_voter(waiting))
            tally = self._tally = VoteTally(now.view, now.id)
        for waiting in self._waiting:
            self._pins.reads(_voter(waiting), now.id)
        if not tally.marked:
            tally.manifest = await self._writer.retry_until_done(lambda: self._mark(now))
            tally.marked = True
        return tally

    async def _mark(self, now: Resume) -> Manifest | None:
        """Gives up if the offer has changed: an outage must not delay the next one."""
        by_then = self._now()
        if now.id is None or by_then is None or (by_then.view, by_then.id) != (now.view, now.id):
            return None
        return await self._pins.mark(now.id)

    # -- reports to the leader --------------------------------------------------------------------------------------

    def _report(self, tally: VoteTally) -> None:
        record = tally.record()
        if record == tally.written or not self._state.view or not self._state.view.start.vote:
            return
        tally.written = record
        self._writer.keep(self._keys.verified_of(self._node), record.encode())

    def _ranks_here(self) -> set[int]:
        view = self._state.view
        mine = view.nodes.get(self._node) if view is not None else None
        return set(mine.ranks) if mine is not None else set()


def _voter(worker: WorkerId) -> str:
    """The reader name of a worker that votes, until its first boundary."""
    return f"{worker} votes"
