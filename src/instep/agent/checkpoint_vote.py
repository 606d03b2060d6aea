"""The node's part in agreeing on the checkpoint to go on from: asks its workers, and tells the leader what they say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from instep.agent.checkpoint_pins import CheckpointPins
from instep.agent.retrying_writer import ATTEMPT_S, RetryingWriter
from instep.agent.state import RunState
from instep.agent.worker import LocalWorker
from instep.agent.workers import Workers
from instep.etcd import Client
from instep.protocol import resuming
from instep.protocol.keys import Keys
from instep.protocol.records import Manifest, Resume, Verified, WorkerId
from instep.wire.messages import Offer, Vote

PARTIAL_S: Final = 1.0
"""When not all ranks of the node have answered so long after the first, those that have are reported, so that the
others can be named."""


@dataclass(slots=True)
class Question:
    """One checkpoint that the ranks of a view are asked about, and what those of this node have said."""

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


class CheckpointVote:
    """Promise: a rank that waits hears each question, and the outcome; from then until its first boundary nobody
    forgets the checkpoint. A node writes at most a few keys for all its ranks."""

    def __init__(
        self,
        node: str,
        client: Client,
        keys: Keys,
        state: RunState,
        workers: Workers,
        writer: RetryingWriter,
        pins: CheckpointPins,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._client = client
        self._keys = keys
        self._state = state
        self._workers = workers
        self._writer = writer
        self._pins = pins
        self._clock = clock
        self._asking = asyncio.Lock()
        self._waiting: dict[WorkerId, Resume | None] = {}
        """Workers that want to resume from a checkpoint, and the last answer that each received."""
        self._question: Question | None = None

    def __repr__(self) -> str:
        return f"CheckpointVote({len(self._waiting)} wait, {self._question})"

    # -- what workers say -------------------------------------------------------------------------------------------

    def wait(self, worker: LocalWorker) -> None:
        """It wants to resume from what all agree on."""
        self._waiting[worker.id] = None
        self.follow()

    def hear(self, worker: LocalWorker, message: Vote) -> None:
        question = self._question
        if question is None or (message.view, message.id) != (question.view, question.id):
            return
        if message.problem is None:
            question.good.add(worker.rank)
            question.since = question.since or self._clock()
        elif question.problem is None:
            question.problem = f"rank {worker.rank} on {worker.member.host}: {message.problem}"[:500]
        if question.problem is not None or question.good >= self._ranks_here():
            self._report(question)

    def gone(self, worker: WorkerId) -> None:
        self._waiting.pop(worker, None)
        self._pins.gone(_voter(worker))

    # -- what they are asked ----------------------------------------------------------------------------------------

    def follow(self) -> None:
        """The run's state has changed, or somebody has come: whoever waits hears how it stands."""
        now = self._now()
        if now is None or all(told == now for told in self._waiting.values()):
            return
        self._writer.start(self._tell(now))

    def look_around(self) -> None:
        """As time passes."""
        question = self._question
        has_said = question is not None and (question.good or question.problem is not None)
        if question is not None and has_said and self._clock() - question.since > PARTIAL_S:
            self._report(question)
        for worker in self._workers:
            if worker.step >= 0:  # it has loaded what it goes on from
                self._pins.gone(_voter(worker.id))

    def say_again(self) -> None:
        """etcd may have lost what was reported: it is reported again as time passes."""
        if self._question is not None:
            self._question.written = None

    async def missing(self) -> tuple[int, ...]:
        """Ranks of the view that have said nothing yet about what all are asked. Raises EtcdError."""
        view, now = self._state.view, self._now()
        if view is None or now is None or now.id is None:
            return ()
        listing = await self._client.range(self._keys.verified, timeout_s=ATTEMPT_S)
        records = [record for item in listing.kvs if (record := Verified.decode_or_none(item.value)) is not None]
        here = [self._question.record()] if self._question is not None else []
        return tuple(resuming.missing(view, now, [*records, *here]))

    def _now(self) -> Resume | None:
        view = self._state.view
        return resuming.asked(view, self._state.resume) if view is not None else None

    async def _tell(self, now: Resume) -> None:
        """The checkpoint is marked as being read before anybody hears of it."""
        async with self._asking:
            if now != self._now():
                return  # another task tells what holds by now
            question = await self._put(now) if now.id is not None else None
            if now != self._now():
                return
            if question is not None and question.manifest is None and not now.final:
                question.problem = question.problem or resuming.GONE
                self._report(question)
                return
            offer = Offer(now.view, now.id, now.final, now.reasons, question.manifest if question is not None else None)
            for worker in self._workers:
                if self._waiting.get(worker.id, now) != now:
                    self._waiting[worker.id] = now
                    if now.final:
                        del self._waiting[worker.id]
                    worker.tell(offer)

    async def _put(self, now: Resume) -> Question:
        """The question about `now`, with the manifest read and marked."""
        assert now.id is not None
        question = self._question
        if question is None or (question.view, question.id) != (now.view, now.id):
            for waiting in self._waiting:
                self._pins.gone(_voter(waiting))
            question = self._question = Question(now.view, now.id)
        for waiting in self._waiting:
            self._pins.reads(_voter(waiting), now.id)
        if not question.marked:
            question.manifest = await self._writer.retry_until_done(lambda: self._mark(now))
            question.marked = True
        return question

    async def _mark(self, now: Resume) -> Manifest | None:
        """An outage must not hold up what is asked by then."""
        by_then = self._now()
        if now.id is None or by_then is None or (by_then.view, by_then.id) != (now.view, now.id):
            return None
        return await self._pins.mark(now.id)

    # -- what the leader hears --------------------------------------------------------------------------------------

    def _report(self, question: Question) -> None:
        record = question.record()
        if record == question.written or not self._state.view or not self._state.view.start.vote:
            return
        question.written = record
        self._writer.keep(self._keys.verified_of(self._node), record.encode())

    def _ranks_here(self) -> set[int]:
        view = self._state.view
        mine = view.nodes.get(self._node) if view is not None else None
        return set(mine.ranks) if mine is not None else set()


def _voter(worker: WorkerId) -> str:
    """One that reads because it is asked, until its first boundary."""
    return f"{worker} votes"
