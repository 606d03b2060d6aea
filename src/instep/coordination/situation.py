"""All that a leader's decision looks at, as one frozen fact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from instep.coordination.attempts import ReportedFailure
from instep.coordination.barriers import Released
from instep.coordination.commands import PendingCommand
from instep.coordination.desired import (
    DesiredValue,
)
from instep.coordination.membership import RegisteredWorker
from instep.coordination.records import (
    Agreed,
    Arrivals,
    Attempts,
    Change,
    Decision,
    Epoch,
    Forming,
    Held,
    Leader,
    Left,
    Manifest,
    Plan,
    Pointer,
    Receipt,
    Rejected,
    Resume,
    Verified,
    View,
    WorkerId,
)
from instep.coordination.schema import Schema


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far this node's own workers are: `step` is the highest one started, None before the first boundary."""

    step: int | None = None
    step_time_s: float = 0.0
    margin_steps: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that the leader's decision looks at."""

    view: View | None = None
    agreed: Agreed | None = None
    registered: tuple[RegisteredWorker, ...] = ()
    left: Mapping[str, Left] = field(default_factory=dict)
    plan: Plan | None = None
    decision: Decision | None = None
    plan_age_s: float = 0.0
    open: bool = True
    """Whether the newest plan's mark stands, without which it cannot be committed."""
    acked: frozenset[str] = frozenset()
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    desired: Mapping[str, DesiredValue] = field(default_factory=dict)
    changes: Mapping[int, Change] = field(default_factory=dict)
    pending_commands: tuple[PendingCommand, ...] = ()
    """Commands that wait to be carried out."""
    declined: Mapping[str, int] = field(default_factory=dict)
    """Revision of each declined command that is still kept, by its id."""
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    """Committed checkpoints by id, where a decision looks at them."""
    pointer: Pointer | None = None
    resume: Resume | None = None
    resume_is_newer: bool = False
    """What the ranks have agreed to go on from was written after the newest checkpoint."""
    verified: Mapping[str, Verified] = field(default_factory=dict)
    rejected: Mapping[str, Rejected] = field(default_factory=dict)
    schemas: Mapping[str, str] = field(default_factory=dict)
    schema: Schema = field(default_factory=lambda: Schema(None))
    long_mismatched: frozenset[WorkerId] = frozenset()
    """Workers that have disagreed with the rest for longer than a lease lives."""
    progress: TrainingProgress = TrainingProgress()
    forming: Forming | None = None
    epoch: Epoch | None = None
    epoch_revision: int = 0
    entered: int = 0
    """The newest view that all staying ranks have entered."""
    held: Mapping[str, Held] = field(default_factory=dict)
    """What nodes hold that etcd has lost."""
    leader: Leader | None = None
    """The leader that was proclaimed last."""
    run: str = ""
    attempts: Attempts = field(default_factory=Attempts)
    reports: tuple[ReportedFailure, ...] = ()
    """How ranks have failed, as their nodes say."""
    has_progressed: bool = False
    """Whether the ranks of the view have run a step together, as far as this leader has seen."""
    released: Mapping[str, Released] = field(default_factory=dict)
    arrivals: Mapping[str, Arrivals] = field(default_factory=dict)
    """Who waits at barriers, by node."""
    outdated_refusals: tuple[WorkerId, ...] = ()
    outdated_schemas: tuple[str, ...] = ()
    """Workers whose refusal is kept although they are gone."""
