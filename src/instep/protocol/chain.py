"""The chain of decisions, and how a worker's head compares with it. Pure.

Each plan carries the digest of what was agreed before it, and the agreed values carry their own digest. The records
alone show whether etcd still has the history that a worker has trained with, even if etcd was restored from a backup or
emptied. docs/decisions/0016-history.md says what follows from that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from instep.protocol.records import Agreed, Decision, Epoch, Head, Member, Plan


class HeadStatus(Enum):
    """How a worker's newest decision compares with what is agreed in etcd."""

    IN_STEP = "in step"
    BEYOND = "beyond"
    """etcd has lost what the worker holds."""
    BRANCHED = "branched"
    """etcd holds decisions that do not follow from the worker's."""


def after(agreed: Agreed, plan: Plan) -> Agreed:
    """The agreed values after `plan` is committed."""
    news: dict[str, Any] = {
        "plan": plan.number,
        "view": plan.view,
        "directive": plan.directive or agreed.directive,
        "digest": plan.digest,
        "parent": agreed.digest,
        "restored": None,
    }
    if plan.kind == "config":
        values = {**agreed.values, **plan.values}
        news |= {"values": values, "gate": plan.gate, "previous": dict(agreed.values), "revision": plan.revision}
    if plan.checkpoint is not None:
        # The steps before it run again, with the current values.
        news |= {"back": plan.number, "gate": None, "previous": None}
    return replace(agreed, **news)


def if_committed(agreed: Agreed | None, plan: Plan) -> Agreed | None:
    """The agreed values of a worker after `plan` is committed; None for a plan that does not follow from `agreed`."""
    if agreed is None:
        return None
    if agreed.digest == plan.digest:
        return agreed
    return after(agreed, plan) if agreed.digest == plan.parent else None


def head_status(plan: int, digest: str, agreed: Agreed | None) -> HeadStatus:
    """Compares a worker that holds the decision of `plan` with `agreed`. One decision behind counts as in step: a
    worker that has promised a plan may learn late that it was committed."""
    if not digest:
        return HeadStatus.IN_STEP  # an agent that knew no digests
    if agreed is None:
        return HeadStatus.BEYOND
    if digest in (agreed.digest, agreed.parent):
        return HeadStatus.IN_STEP
    return HeadStatus.BEYOND if plan > agreed.plan else HeadStatus.BRANCHED


def is_lost(member: Member, agreed: Agreed | None, view: int, epoch: int, newest: int) -> bool:
    """Whether a registration proves that etcd's history has gone back since. `view` is the newest view in etcd,
    `newest` the highest plan number. A registration of an earlier epoch proves nothing, because it may come from the
    restored history. A new worker holds nothing that could be lost."""
    head = member.head
    if head is None or member.epoch < epoch:
        return False
    behind = agreed is None or head.plan > agreed.plan or (head.plan == agreed.plan and head.digest != agreed.digest)
    return member.epoch > epoch or member.view > view or head.told > newest or (bool(head.digest) and behind)


def conflict(heads: list[tuple[int, Head]], top: Head, parent: str) -> str | None:
    """Why these workers, given as rank and head, cannot be in one view; None if they can. `parent` is the digest before
    that of `top`. Workers that agree hold `top` or the decision just before it."""
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
    """A plan that a worker has promised."""

    number: int
    digest: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """The records in etcd under the number of a promised plan."""

    plan: Plan | None
    decision: Decision | None
    agreed: Agreed | None
    epoch: Epoch | None


class Unknown(Enum):
    OPEN = "open"
    """Not decided: it may be aborted."""
    LOST = "lost"
    """Not known from these records, and not to be guessed."""


def verdict(promised: Promised, found: StoredPlan) -> Decision | Unknown:
    """Whether a promised plan was committed. If etcd's history has gone back, the records under its number may belong
    to another plan. Then the ranks report what they hold, and the settled epoch holds the outcome."""
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
        return found.decision  # older plans are deleted, their decisions count
    if found.epoch is not None and found.epoch.settled and epoch > promised.epoch:
        reason = "etcd's history went back, and no rank knows of its commit"
        return Decision(commit=found.epoch.digest == promised.digest, reason=reason)
    return Unknown.LOST
