"""The actions of a leader. Each becomes one guarded transaction (see transactions.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from instep.protocol.barriers import ReleaseBarrier
from instep.protocol.dry_run import DryRun
from instep.protocol.records import (
    Agreed,
    Attempts,
    Decision,
    Declined,
    Epoch,
    Forming,
    Leader,
    Plan,
    Refused,
    Rejected,
    Resume,
    StartChange,
    View,
    WorkerId,
)
from instep.protocol.schema import Schema
from instep.scalar import Scalar

MAX_COLLECTED = 30
MAX_DECLINED = 40
MAX_SCHEMAS_COLLECTED = 5
"""Records of one kind that one transaction deletes; etcd allows 128 operations."""


@dataclass(frozen=True, slots=True)
class FormView:
    view: View
    agreed: Agreed
    schema: Schema
    rejections: tuple[Rejected, ...]
    abort_plan: int | None
    """An undecided plan of the view before. Its abort is part of the same transaction, so it cannot be committed."""
    dry_run: DryRun | None = None
    """Values that a worker of the view validates first."""
    at: str | None = None
    """Wall clock, for display only."""
    attempts: Attempts | None = None
    """The count of failures to write; None when it is unchanged."""
    changes: tuple[StartChange, ...] = ()
    """For a fresh view: the changes since the last plan, which the view starts with."""


@dataclass(frozen=True, slots=True)
class RefuseWorkers:
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True)
class RejectJoin:
    """Refuses newcomers of a run that has failed too often. etcd refuses it if the count was cleared since."""

    refused: tuple[Refused, ...]
    attempts: Attempts | None
    """The count of failures to write; None when it is unchanged."""


@dataclass(frozen=True, slots=True)
class OpenPlan:
    plan: Plan
    follows: int | None = None
    """The newest plan in etcd, which must be decided, if it is not `plan.number - 1`; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class CommitPlan:
    plan: Plan
    agreed: Agreed


@dataclass(frozen=True, slots=True)
class AbortPlan:
    number: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class RejectValues:
    rejections: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class DeclineCommands:
    """Declines commands, by id."""

    declined: tuple[tuple[str, Declined], ...]


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """Deletes records that are outdated: rejections, changes, declined commands, refusals, schemas."""

    rejections: tuple[str, ...]
    changes: tuple[str, ...]
    declined: tuple[str, ...] = ()
    refusals: tuple[WorkerId, ...] = ()
    schemas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OfferCheckpoint:
    """Offers a checkpoint to the ranks, or names the one from which all of them resume."""

    resume: Resume


@dataclass(frozen=True, slots=True)
class AnnounceForming:
    """Shows waiting workers which ranks are missing."""

    forming: Forming


@dataclass(frozen=True, slots=True)
class RaiseEpoch:
    """Begins an epoch: a registration proves that etcd's history has gone back."""

    epoch: Epoch
    told: int
    """The number of a plan that a registration names and that etcd lacks; 0 if there is none."""


@dataclass(frozen=True, slots=True)
class ProclaimLeader:
    """Gives this leader a token of the new epoch."""

    leader: Leader


@dataclass(frozen=True, slots=True)
class RewriteConfig:
    """Replaces desired values that were superseded before etcd's history went back."""

    config: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class SettleEpoch:
    """Ends an epoch once all training workers have reported what they hold: writes back what etcd has lost, and decides
    an open plan as the workers know it."""

    epoch: Epoch
    agreed: Agreed | None = None
    """The agreed values to write back; None if etcd has lost nothing."""
    plan: Plan | None = None
    """The plan of these values, if etcd has lost it too."""
    decides: int = 0
    """The number of the plan that is open in etcd; 0 for none."""
    commits: bool = False


@dataclass(frozen=True, slots=True)
class MarkEntered:
    """Lets newcomers begin: all staying ranks have entered the view."""

    view: int


LeaderAction = (
    AnnounceForming
    | OfferCheckpoint
    | FormView
    | ReleaseBarrier
    | RefuseWorkers
    | RejectJoin
    | OpenPlan
    | CommitPlan
    | AbortPlan
    | DeclineCommands
    | MarkEntered
    | ProclaimLeader
    | RaiseEpoch
    | RejectValues
    | RewriteConfig
    | SettleEpoch
    | CollectGarbage
)
