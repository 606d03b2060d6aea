"""What a leader can do next: each becomes one guarded txn (see transactions.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from instep.coordination.barriers import ReleaseBarrier
from instep.coordination.dry_run import DryRun
from instep.coordination.records import (
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
from instep.coordination.schema import Schema
from instep.scalar import Scalar

MAX_COLLECTED = 30
MAX_DECLINED = 40
MAX_SCHEMAS_COLLECTED = 5
"""Records of a kind deleted by one txn; etcd allows 128 operations."""


@dataclass(frozen=True, slots=True)
class FormView:
    view: View
    agreed: Agreed
    schema: Schema
    rejections: tuple[Rejected, ...]
    abort_plan: int | None
    """An undecided plan of the view before: its abort is part of the same txn, so it can no longer be committed."""
    dry_run: DryRun | None = None
    """To be tried by a worker of the view first."""
    at: str | None = None
    """Wall clock, for people only."""
    attempts: Attempts | None = None
    """What is known of failures then; None when nothing is new."""
    changes: tuple[StartChange, ...] = ()
    """Of a fresh view: the changes made since the last plan that it starts with."""


@dataclass(frozen=True, slots=True)
class RefuseWorkers:
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True)
class RejectJoin:
    """Newcomers of a run that has failed too often. Refused when somebody has cleared the count since."""

    refused: tuple[Refused, ...]
    attempts: Attempts | None
    """What is known of failures then; None when nothing is new."""


@dataclass(frozen=True, slots=True)
class OpenPlan:
    plan: Plan
    follows: int | None = None
    """The newest plan in etcd, which must be decided, where that is not the one before; 0 where there is none."""


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
    """Commands that are not carried out, by id."""

    declined: tuple[tuple[str, Declined], ...]


@dataclass(frozen=True, slots=True)
class CollectGarbage:
    """Records that speak of values which no longer stand, or that are done with."""

    rejections: tuple[str, ...]
    changes: tuple[str, ...]
    declined: tuple[str, ...] = ()
    refusals: tuple[WorkerId, ...] = ()
    schemas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OfferCheckpoint:
    """Which checkpoint the ranks are asked about next, or all go on from."""

    resume: Resume


@dataclass(frozen=True, slots=True)
class AnnounceForming:
    """Tells those who wait which ranks are missing."""

    forming: Forming


@dataclass(frozen=True, slots=True)
class RaiseEpoch:
    """What is registered proves that etcd's history has gone back."""

    epoch: Epoch
    told: int = 0
    """The number of a plan that a registration names and that was not seen in etcd; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class ProclaimLeader:
    """This leader continues, with a token of the epoch that has begun."""

    leader: Leader


@dataclass(frozen=True, slots=True)
class RewriteConfig:
    """Desired values that were superseded before etcd's history went back."""

    config: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class SettleEpoch:
    """All workers that train have reported what they hold. What etcd has lost is written back, and an open plan is
    decided as they know it."""

    epoch: Epoch
    agreed: Agreed | None = None
    """To be written back; None where etcd has lost nothing."""
    plan: Plan | None = None
    """The plan that it came from, where that is to be written back too."""
    decides: int = 0
    """The plan that is open in etcd; 0 for none."""
    commits: bool = False


@dataclass(frozen=True, slots=True)
class MarkEntered:
    """All staying ranks have entered the view: newcomers may begin."""

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
