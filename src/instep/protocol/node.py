"""What a node's agent does with plans, decisions and the answers of its workers. Pure: events in, actions out.

One ack counts for all ranks of the node: it is written only when each rank has promised (or ended). The agent may lose
this state and die: the workers keep their promises and report them to the next agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from instep.protocol.chain import Promised
from instep.protocol.records import Ack, Decision, Left, Plan, Receipt, View


class RankStatus(Enum):
    ACTIVE = "active"
    LEFT = "left"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class TellPlan:
    rank: int
    plan: Plan


@dataclass(frozen=True, slots=True)
class TellDecision:
    rank: int
    number: int
    decision: Decision
    digest: str = ""
    """The plan's digest, if known: another plan may have had the number in a history that is lost."""


@dataclass(frozen=True, slots=True)
class WriteAck:
    number: int
    ack: Ack


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    number: int
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class WriteLeft:
    """Writes the record once etcd has the receipts that come before it."""

    left: Left


@dataclass(frozen=True, slots=True)
class SettlePromise:
    """Tries to abort the plan, then reads its decision, which is then known and final."""

    promised: Promised
    decision: Decision

    @property
    def number(self) -> int:
        return self.promised.number


NodeAction = TellPlan | TellDecision | WriteAck | WriteReceipt | WriteLeft | SettlePromise


@dataclass(slots=True)
class NodeAgreement:
    """The node's part in the agreement, for the ranks that the current view places on this node."""

    node: str
    view_number: int = 0
    life: dict[int, RankStatus] = field(default_factory=dict)
    incarnations: dict[int, str] = field(default_factory=dict)
    plan: Plan | None = None
    decision: Decision | None = None
    armed: set[int] = field(default_factory=set)
    applied: dict[int, int] = field(default_factory=dict)
    drift: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """By rank: the values of the plan that its optimizer does not hold."""
    last_step: int = -1
    """The highest step run by a rank that has left. A gate must be after it."""

    def on_view(self, view: View, left: Left | None = None) -> list[NodeAction]:
        """Enters a view that was formed, or that a new agent reads: from now on only its ranks on this node count.

        Writes a receipt that waited for a rank which is gone: no later event would cause it.
        """
        if view.number == self.view_number:
            return []
        mine = view.nodes.get(self.node)
        before = self.incarnations
        self.view_number = view.number
        self.incarnations = dict(zip(mine.ranks, mine.incarnations, strict=True)) if mine else {}
        mine_left = left if left is not None and left.view == view.number else Left(view=view.number, ranks=())
        gone, self.last_step = set(mine_left.ranks), mine_left.last_step
        self.life = {rank: RankStatus.LEFT if rank in gone else RankStatus.ACTIVE for rank in self.incarnations}
        self.armed = set()
        self.applied = {
            rank: step
            for rank, step in self.applied.items()
            if not view.fresh and self.incarnations.get(rank) == before.get(rank, "")
        }
        return self._receipt(self.plan.number) if self.plan is not None and self.applied else []

    def on_plan(self, plan: Plan) -> list[NodeAction]:
        if plan.view != self.view_number or (self.plan is not None and plan.number <= self.plan.number):
            return []
        self.plan, self.decision, self.armed, self.applied, self.drift = plan, None, set(), {}, {}
        return [TellPlan(rank, plan) for rank in self._active()] + self._answer()

    def on_decision(self, number: int, decision: Decision, digest: str = "") -> list[NodeAction]:
        """Passes the decision to every worker, even of an older plan: a disconnected worker may still wait at its
        gate."""
        if self.plan is not None and number == self.plan.number and digest in ("", self.plan.digest):
            self.decision, digest = decision, self.plan.digest
        return [TellDecision(rank, number, decision, digest) for rank in self._active()]

    def on_joined(self, rank: int) -> list[NodeAction]:
        """A worker of the view has connected: it gets the open plan."""
        if rank not in self.life:
            return []
        self.life[rank] = RankStatus.ACTIVE
        if self.plan is None or self.plan.view != self.view_number:
            return []
        told: list[NodeAction] = [TellPlan(rank, self.plan)]
        if self.decision is not None:
            told.append(TellDecision(rank, self.plan.number, self.decision, self.plan.digest))
        return told

    def is_about(self, number: int, digest: str) -> bool:
        """Whether a worker that names a plan may mean the known one. If etcd's history has gone back, two plans may
        have the same number; a worker that knew no digest names none."""
        plan = self.plan
        return plan is None or number != plan.number or digest in ("", plan.digest)

    def on_armed(self, rank: int, number: int) -> list[NodeAction]:
        if self.plan is None or number != self.plan.number or rank not in self.life:
            return []
        self.armed.add(rank)
        return self._answer()

    def on_late(self, rank: int, number: int, step: int) -> list[NodeAction]:
        reason = f"rank {rank} was already at step {step}"
        return self._settle(number, Decision(commit=False, reason=reason, by=self.node, step=step))

    def on_foreign(self, rank: int, number: int, head: str) -> list[NodeAction]:
        """A worker got a plan that does not follow from what it holds."""
        reason = f"rank {rank} holds {head}, and the plan follows from something else: etcd's history went back"
        return self._settle(number, Decision(commit=False, reason=reason, by=self.node))

    def on_refused(self, number: int, problems: dict[str, str], rank: int) -> list[NodeAction]:
        reason = f"rank {rank} could not accept it: " + "; ".join(f"{k}: {v}" for k, v in problems.items())
        return self._settle(number, Decision(commit=False, reason=reason[:1000], by=self.node, refused=problems))

    def on_gate(self, rank: int, promised: Promised, step: int) -> list[NodeAction]:
        """A worker waits at the gate without knowing the decision."""
        is_it = self.plan is not None and (promised.number, promised.digest) == (self.plan.number, self.plan.digest)
        if is_it and self.decision is not None:
            return [TellDecision(rank, promised.number, self.decision, promised.digest)]
        reason = f"rank {rank} reached step {step} before it was decided"
        return [SettlePromise(promised, Decision(commit=False, reason=reason, by=self.node, step=step))]

    def on_applied(self, rank: int, number: int, step: int, drift: tuple[str, ...] = ()) -> list[NodeAction]:
        """A worker has applied the plan, or reports later that its optimizer does not hold the values: both are in the
        receipt."""
        if rank not in self.life or (self.plan is not None and number != self.plan.number):
            return []
        self.applied[rank], self.drift[rank] = step, drift
        return self._receipt(number)

    def on_left(self, rank: int, last_step: int) -> list[NodeAction]:
        """The worker's loop ended after `last_step`: no later gate waits for it."""
        if rank not in self.life:
            return []
        self.life[rank] = RankStatus.LEFT
        self.last_step = max(self.last_step, last_step)
        left = self.left()
        receipt = self._receipt(self.plan.number) if self.plan and self.applied else []
        return [*receipt, *([WriteLeft(left)] if left is not None else []), *self._answer()]

    def left(self) -> Left | None:
        """The ranks of the view on this node that have ended cleanly; None if there are none."""
        gone = tuple(sorted(rank for rank, life in self.life.items() if life is RankStatus.LEFT))
        return Left(view=self.view_number, ranks=gone, last_step=self.last_step) if gone else None

    def on_died(self, rank: int) -> list[NodeAction]:
        """The worker has died: an open plan cannot be agreed on any more."""
        if rank not in self.life or self.life[rank] is RankStatus.LEFT:
            return []
        self.life[rank] = RankStatus.DEAD
        if self.plan is None or self.decision is not None or self.plan.view != self.view_number:
            return []
        reason = f"rank {rank} died"
        return self._settle(self.plan.number, Decision(commit=False, reason=reason, by=self.node))

    def _settle(self, number: int, decision: Decision) -> list[NodeAction]:
        """Settles the known plan. A message about another plan is about one that was decided."""
        if self.plan is None or number != self.plan.number:
            return []
        return [SettlePromise(Promised(number, self.plan.digest, self.plan.epoch), decision)]

    def _active(self) -> list[int]:
        return [rank for rank, life in self.life.items() if life is RankStatus.ACTIVE]

    def _answer(self) -> list[NodeAction]:
        """An ack if all ranks have promised, an abort if a rank that has left ran past the gate, else nothing."""
        if self.plan is None or self.decision is not None or self.plan.view != self.view_number or not self.life:
            return []
        if any(life is RankStatus.LEFT for life in self.life.values()) and self.last_step >= self.plan.gate:
            reason = f"a rank that has left had already run step {self.last_step}"
            decision = Decision(commit=False, reason=reason, by=self.node, step=self.last_step)
            return self._settle(self.plan.number, decision)
        promised = all(
            rank in self.armed if life is RankStatus.ACTIVE else life is RankStatus.LEFT
            for rank, life in self.life.items()
        )
        ack = Ack(node=self.node, ranks=tuple(sorted(self.armed)), digest=self.plan.digest)
        return [WriteAck(self.plan.number, ack)] if promised else []

    def _receipt(self, number: int) -> list[NodeAction]:
        if not all(rank in self.applied for rank in self._active()):
            return []
        drift = {rank: names for rank in sorted(self.applied) if (names := self.drift.get(rank))}
        return [WriteReceipt(number, Receipt(node=self.node, steps=dict(sorted(self.applied.items())), drift=drift))]
