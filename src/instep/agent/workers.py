"""The node's workers: connected, in the view, leading."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from instep.agent.connection import DisconnectedWorker, WorkerConnection
from instep.agent.stall import WorkerProgress
from instep.protocol.chain import Promised
from instep.protocol.records import Agreed, Head, Leader, Member, Plan, View, WorkerId
from instep.protocol.schema import Schema
from instep.version import VERSION
from instep.wire.messages import FromAgent, Hello, Leads, PlanApplied, WorkerStatus

WINDOW_S = 5.0
SPACING_S = 0.2


MISSED_S: Final = 5.0
"""An agent that has not looked for so long was stopped, or starved, itself."""


@dataclass(slots=True)
class PaceMeter:
    """The mean step time over the last few seconds; 0.0 until two boundaries have been seen."""

    _samples: deque[tuple[int, float]] = field(default_factory=deque)

    def observe(self, step: int, at: float) -> None:
        """`at` is the monotonic time, in seconds, of the boundary before `step`."""
        if self._samples and step < self._samples[0][0]:
            self._samples.clear()  # the run was taken back to a checkpoint
        if step < 0 or (self._samples and step <= self._samples[-1][0]):
            return
        if len(self._samples) > 1 and at - self._samples[-2][1] < SPACING_S:
            self._samples.pop()  # the newest pair counts, but pairs too close together tell nothing new
        self._samples.append((step, at))
        while len(self._samples) > 2 and at - self._samples[0][1] > WINDOW_S:
            self._samples.popleft()

    @property
    def step_time_s(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (first, began), (last, ended) = self._samples[0], self._samples[-1]
        return max(0.0, ended - began) / (last - first)


@dataclass(slots=True, eq=False)
class LocalWorker:
    """One worker, identified by rank and incarnation. Its connection may be replaced while it lives."""

    member: Member
    schema: Schema
    connection: WorkerConnection | DisconnectedWorker
    view: int = 0
    """The view that it is in; 0 before its first."""
    absent: bool = False
    """It lives and has connected to a former agent of this node only."""
    met: int = 0
    """The view that was sent over this connection."""
    awaits: int = 0
    """The view that counts it as staying although it has not begun."""
    agreed: Agreed | None = None
    """The newest decision that it knows or was sent: never older than what it knows."""
    plan: Plan | None = None
    """The plan of `agreed`, if known."""
    told: Plan | None = None
    """The newest plan that it was sent, until it is sent the decision."""
    heard: int = 0
    """The highest number of a plan that it was sent, including aborted ones: it promises none up to that number."""
    epoch: int = 0
    """The run's epoch at its last registration."""
    applied: PlanApplied | None = None
    """Its last report of an applied plan."""
    told_token: int | None = None
    """The token that it was last sent as the leader; 0 for not leading, None before the first message."""
    pace: PaceMeter = field(default_factory=PaceMeter)
    excused_until: float = 0.0
    """Until then (seconds on the monotonic clock) it may pass no boundary without counting as stalled; its stall
    time starts there. Set it far ahead when a long operation begins, and to now when it ends."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    status: WorkerStatus | None = None
    """Its newest report of what operators can ask of it; None before the first."""

    @classmethod
    def from_hello(cls, hello: Hello, node: str, connection: WorkerConnection) -> LocalWorker:
        """Raises ValueError for a worker that no view could name."""
        schema = Schema(hello.schema)
        member = Member(
            rank=hello.rank,
            world_size=hello.world_size,
            incarnation=hello.incarnation,
            node=node,
            host=hello.host[:64],
            pid=hello.pid,
            schema_digest=schema.digest,
            max_restarts=hello.max_restarts,
            elastic=hello.elastic,
            take_over=hello.take_over,
            version=VERSION,
        )
        return cls(
            member,
            schema,
            connection,
            view=hello.view,
            agreed=hello.agreed,
            told=hello.told,
            heard=hello.heard,
            epoch=hello.epoch,
        )

    @property
    def rank(self) -> int:
        return self.member.rank

    @property
    def id(self) -> WorkerId:
        return self.member.worker

    def record(self) -> Member:
        """Its current registration."""
        now = {"view": self.view, "awaits": self.awaits, "epoch": self.epoch, "head": self.head()}
        return self.member.model_copy(update=now)

    def head(self) -> Head | None:
        """What it holds; None for a new one."""
        agreed, told = self.agreed, self.told
        if not self.view or agreed is None:
            return None
        number = max(agreed.plan, self.heard, told.number if told is not None else 0)
        return Head(plan=agreed.plan, digest=agreed.digest, told=number)

    @property
    def promised(self) -> Promised | None:
        """The plan that it was sent and whose decision it does not know."""
        told = self.told
        return Promised(told.number, told.digest, told.epoch) if told is not None else None

    def keep(self, former: LocalWorker) -> None:
        """The worker has connected again. Messages over the former connection may be lost, but they count."""
        self.pace, self.excused_until = former.pace, former.excused_until
        self.epoch, self.applied = max(self.epoch, former.epoch), self.applied or former.applied
        self.heard = max(self.heard, former.heard)
        if former.agreed is not None and (self.agreed is None or former.agreed.plan > self.agreed.plan):
            self.agreed, self.plan = former.agreed, former.plan
        if self.told is None and former.told is not None:
            self.told = former.told
        if self.told is not None and self.agreed is not None and self.told.number <= self.agreed.plan:
            self.told = None

    @property
    def step(self) -> int:
        """The last boundary that it passed; -1 before the first."""
        words = self.connection.words
        return words.step if words is not None else -1

    @property
    def at(self) -> float:
        words = self.connection.words
        return words.at if words is not None else 0.0

    def progress(self) -> WorkerProgress:
        return WorkerProgress(
            rank=self.rank,
            incarnation=self.member.incarnation,
            joined=self.view > 0,
            trains=self.step >= 0 or self.absent,
            at=self.at,
            excused_until=self.excused_until,
            step_time_s=self.pace.step_time_s,
        )

    def send(self, message: FromAgent) -> None:
        self.connection.send(message)

    def beat(self, now: float) -> None:
        words = self.connection.words
        if words is not None:
            words.set_beat(now)


class Workers:
    """All of them, in the order of their arrival."""

    def __init__(self) -> None:
        self._by_id: dict[WorkerId, LocalWorker] = {}
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._looked_at = -MISSED_S

    def __iter__(self) -> Iterator[LocalWorker]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def __repr__(self) -> str:
        return f"Workers({', '.join(f'rank {worker.rank}' for worker in self)})"

    def add(self, worker: LocalWorker) -> None:
        """A worker that connects again keeps its place; its former connection is closed."""
        former = self._by_id.get(worker.id)
        if former is not None and former.connection is not worker.connection:
            former.connection.close()
            worker.keep(former)
        self._by_id[worker.id] = worker
        self._some.set()

    def remove(self, worker: LocalWorker) -> None:
        if self._by_id.get(worker.id) is worker:
            del self._by_id[worker.id]
        if not self._by_id:
            self._none.set()

    async def wait_first(self) -> None:
        """Waits until a worker has connected. It may be gone by then."""
        await self._some.wait()

    async def wait_gone(self) -> None:
        """Waits until no worker is left."""
        while self._by_id:
            self._none.clear()
            await self._none.wait()

    def of(self, connection: WorkerConnection | DisconnectedWorker) -> LocalWorker | None:
        return next((worker for worker in self if worker.connection is connection), None)

    def in_view(self, view: View | None, node: str) -> dict[int, LocalWorker]:
        """The workers of this node in the view, by rank."""
        mine = view.nodes.get(node) if view is not None else None
        if mine is None:
            return {}
        named = map(WorkerId, mine.ranks, mine.incarnations)
        return {worker.rank: self._by_id[worker] for worker in named if worker in self._by_id}

    def of_id(self, worker: WorkerId) -> LocalWorker | None:
        return self._by_id.get(worker)

    def look(self, now: float, paused_at: int | None) -> None:
        """Measures the pace of each worker. Call it about once a second, with `now` in seconds on the monotonic
        clock. Time in which the agent did not look, and time before step `paused_at`, does not count as a stall."""
        missed = now - self._looked_at > MISSED_S
        self._looked_at = now
        for worker in self:
            worker.pace.observe(worker.step, worker.at)
            if missed or (paused_at is not None and worker.step >= paused_at - 1):
                worker.excused_until = max(worker.excused_until, now)

    def furthest(self) -> tuple[int, float]:
        """Step and time of the last boundary of the furthest worker; -1 if none has passed one."""
        return max(((worker.step, worker.at) for worker in self), default=(-1, 0.0))

    def notify_leader(self, leader: Leader | None) -> None:
        """Notifies each worker whose leadership or token has changed, and each new one: a former agent may have told
        it otherwise."""
        for worker in self:
            token = leader.token if leader is not None and worker.id == leader.worker else 0
            if token != worker.told_token:
                worker.told_token = token
                candidate = leader.candidate if leader is not None and token else ""
                worker.send(Leads(token, candidate))
