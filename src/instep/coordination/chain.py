"""The chain of decisions, and where somebody stands in it. Pure.

Each plan carries the digest of what was agreed before it, and what is agreed carries its own. So the records alone tell
whether etcd still has the history that a worker has trained with, though it was restored from a backup
or emptied. What follows from that is in docs/decisions/0016-history.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from instep.coordination.records import Agreed, Decision, Epoch, Head, Member, Plan


class Stand(Enum):
    """Of a worker, towards what etcd says is agreed."""

    IN_STEP = "in step"
    BEYOND = "beyond"
    """etcd has lost what the worker holds."""
    BRANCHED = "branched"
    """etcd holds decisions that do not follow from those that the worker holds."""


def after(agreed: Agreed, plan: Plan) -> Agreed:
    """What is agreed once `plan` is committed."""
    news: dict[str, object] = {
        "plan": plan.number,
        "view": plan.view,
        "course": plan.course or agreed.course,
        "digest": plan.digest,
        "parent": agreed.digest,
        "restored": None,
    }
    if plan.kind == "config":
        values = {**agreed.values, **plan.values}
        news |= {"values": values, "gate": plan.gate, "previous": dict(agreed.values), "revision": plan.revision}
    if plan.kind == "restore":
        # The steps before it are run again, with what holds now.
        news |= {"back": plan.number, "gate": None, "previous": None}
    return agreed.model_copy(update=news)


def if_committed(agreed: Agreed | None, plan: Plan) -> Agreed | None:
    """What a worker that hears of `plan` holds once it is committed; None for a plan that does not follow from what is
    agreed."""
    if agreed is None:
        return None
    if agreed.digest == plan.digest:
        return agreed
    return after(agreed, plan) if agreed.digest == plan.parent else None


def stand(plan: int, digest: str, agreed: Agreed | None) -> Stand:
    """Of who holds the decision of `plan`. One decision behind is in step: who has promised a plan may hear late that
    it was committed."""
    if not digest:
        return Stand.IN_STEP  # of an agent that knew no digests
    if agreed is None:
        return Stand.BEYOND
    if digest in (agreed.digest, agreed.parent):
        return Stand.IN_STEP
    return Stand.BEYOND if plan > agreed.plan else Stand.BRANCHED


def is_lost(member: Member, agreed: Agreed | None, view: int, epoch: int, newest: int) -> bool:
    """Whether a registration proves that etcd's history has gone back since. `view` is the newest that etcd knows of,
    `newest` the highest number of a plan. A registration of an earlier epoch proves nothing: it may have been brought
    back. That of a new worker holds nothing that could be lost."""
    head = member.head
    if head is None or member.epoch < epoch:
        return False
    behind = agreed is None or head.plan > agreed.plan or (head.plan == agreed.plan and head.digest != agreed.digest)
    return member.epoch > epoch or member.view > view or head.told > newest or (bool(head.digest) and behind)


def conflict(heads: list[tuple[int, Head]], top: Head, parent: str) -> str | None:
    """Why these workers, each a rank and its head, cannot be in one view. `parent` is the digest before that of `top`.
    All that agree hold `top`, or the decision just before it."""
    for rank, head in heads:
        if head.digest and top.digest and head.digest not in (top.digest, parent):
            holders = [other for other, held in heads if held.digest == top.digest]
            return (
                f"rank {rank} holds decision {head.plan} ({head.digest}), rank {holders[0]} holds decision {top.plan} "
                f"({top.digest}), and neither follows from the other: they train with different values"
            )
    return None


@dataclass(frozen=True, slots=True)
class Promised:
    """A plan as a worker has promised it."""

    number: int
    digest: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Found:
    """What stands in etcd about that number."""

    plan: Plan | None
    decision: Decision | None
    agreed: Agreed | None
    epoch: Epoch | None


class Unknown(Enum):
    OPEN = "open"
    """It is not decided: it may be aborted."""
    LOST = "lost"
    """It cannot be told here: nobody may guess."""


def verdict(promised: Promised, found: Found) -> Decision | Unknown:
    """Whether a promised plan was committed. What stands under its number may be another one's, where etcd's history
    has gone back; then the run's ranks say what they hold, and an epoch that is settled says what came of it."""
    plan, epoch = found.plan, found.epoch.number if found.epoch is not None else 0
    agreed = found.agreed
    if agreed is not None and promised.digest and (agreed.plan, agreed.digest) == (promised.number, promised.digest):
        return Decision(commit=True, by="leader")
    is_it = plan is not None and promised.digest in ("", plan.digest)
    if is_it and found.decision is not None:
        return found.decision
    if is_it and epoch <= promised.epoch:
        return Unknown.OPEN
    if plan is None and found.decision is not None and epoch <= promised.epoch:
        return found.decision  # the history keeps so many plans
    if found.epoch is not None and found.epoch.settled and epoch > promised.epoch:
        reason = "etcd's history went back, and no rank knows of its commit"
        return Decision(commit=found.epoch.digest == promised.digest, reason=reason)
    return Unknown.LOST
