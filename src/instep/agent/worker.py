"""One local worker as its agent knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from instep.agent.connection import Connection
from instep.agent.disconnected_worker import DisconnectedWorker
from instep.agent.pace import PaceMeter
from instep.agent.stall import Standing
from instep.protocol.records import Agreed, Head, Member, Plan, WorkerId
from instep.protocol.schema import Schema
from instep.version import VERSION
from instep.wire.messages import FromAgent, Hello, PlanApplied


@dataclass(slots=True, eq=False)
class LocalWorker:
    """Identified by rank and incarnation; its connection may be replaced while it lives."""

    member: Member
    schema: Schema
    connection: Connection | DisconnectedWorker
    view: int = 0
    """The view it was welcomed to; 0 while it waits for one."""
    absent: bool = False
    """It lives, and was met by a former agent of this node only."""
    met: int = 0
    """The view that was sent over this connection."""
    awaits: int = 0
    """The view that lists it as one that stays, although it has not begun."""
    agreed: Agreed | None = None
    """The newest decision that it knows or was sent: never older than what it knows itself."""
    plan: Plan | None = None
    """The plan that `agreed` came from, where that is known."""
    told: Plan | None = None
    """The newest plan that it was sent, until it is sent the decision."""
    heard: int = 0
    """The highest number of a plan that it was sent, aborted plans included: it promises none up to that number."""
    epoch: int = 0
    """The run's epoch when it was registered last."""
    applied: PlanApplied | None = None
    """What it said last of a plan that it has applied."""
    told_token: int | None = None
    """The token it leads with as it was told, 0 for not leading; None before it has been told anything."""
    pace: PaceMeter = field(default_factory=PaceMeter)
    excused_until: float = 0.0
    """Until then, in seconds on the monotonic clock, it may pass no boundary without having stalled; from then on its
    time counts anew. Set it far ahead when something long begins, to now when that ends."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    actions: tuple[str, ...] | None = None
    """What its script has declared, as far as it has said so."""
    drift: tuple[str, ...] = ()
    """Hyperparameters that its optimizer does not hold as agreed."""
    restores: bool | None = None
    """Whether its script can load a checkpoint."""

    @classmethod
    def from_hello(cls, hello: Hello, node: str, connection: Connection) -> LocalWorker:
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
        """Its registration, as of now."""
        now = {"view": self.view, "awaits": self.awaits, "epoch": self.epoch, "head": self.head()}
        return self.member.model_copy(update=now)

    def head(self) -> Head | None:
        """What it holds, None for one that is new."""
        agreed, told = self.agreed, self.told
        if not self.view or agreed is None:
            return None
        number = max(agreed.plan, self.heard, told.number if told is not None else 0)
        return Head(plan=agreed.plan, digest=agreed.digest, told=number)

    def keep(self, former: LocalWorker) -> None:
        """The worker has reconnected. Messages of the former connection may not have reached it, but they count."""
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
        """The last boundary it passed; -1 before the first."""
        words = self.connection.words
        return words.step if words is not None else -1

    @property
    def at(self) -> float:
        words = self.connection.words
        return words.at if words is not None else 0.0

    def standing(self) -> Standing:
        return Standing(
            rank=self.rank,
            incarnation=self.member.incarnation,
            joined=self.view > 0,
            trains=self.step >= 0 or self.absent,
            at=self.at,
            excused_until=self.excused_until,
            step_time_s=self.pace.step_time_s,
        )

    def tell(self, message: FromAgent) -> None:
        self.connection.send(message)

    def beat(self, now: float) -> None:
        words = self.connection.words
        if words is not None:
            words.set_beat(now)
