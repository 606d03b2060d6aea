"""The input of a leader's decision, as one immutable value; and whether the ranks of a view have completed a step
together. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from instep.protocol.attempts import ReportedFailure
from instep.protocol.barriers import Released
from instep.protocol.commands import PendingCommand
from instep.protocol.desired import (
    DesiredValue,
)
from instep.protocol.membership import RegisteredWorker
from instep.protocol.records import (
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
from instep.protocol.schema import Schema


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Progress of this node's workers: `step` is the highest one started, None before the first boundary."""

    step: int | None = None
    step_time_s: float = 0.0
    margin_steps: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """The input of the leader's decision."""

    view: View | None = None
    agreed: Agreed | None = None
    registered: tuple[RegisteredWorker, ...] = ()
    left: Mapping[str, Left] = field(default_factory=dict)
    plan: Plan | None = None
    decision: Decision | None = None
    plan_age_s: float = 0.0
    open: bool = True
    """Whether the open mark of the newest plan exists; without it the plan cannot be committed."""
    acked: frozenset[str] = frozenset()
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    desired: Mapping[str, DesiredValue] = field(default_factory=dict)
    changes: Mapping[int, Change] = field(default_factory=dict)
    pending_commands: tuple[PendingCommand, ...] = ()
    """Commands that wait to be carried out."""
    declined: Mapping[str, int] = field(default_factory=dict)
    """Revision of each recorded declined command, by id."""
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    """Committed checkpoints by id, if a decision reads them."""
    pointer: Pointer | None = None
    resume: Resume | None = None
    resume_is_newer: bool = False
    """The record of the checkpoint to resume from is newer than the newest checkpoint."""
    verified: Mapping[str, Verified] = field(default_factory=dict)
    rejected: Mapping[str, Rejected] = field(default_factory=dict)
    schemas: Mapping[str, str] = field(default_factory=dict)
    schema: Schema = field(default_factory=lambda: Schema(None))
    long_mismatched: frozenset[WorkerId] = frozenset()
    """Workers that have been mismatched for longer than a lease lives."""
    progress: TrainingProgress = TrainingProgress()
    forming: Forming | None = None
    epoch: Epoch | None = None
    epoch_revision: int = 0
    entered: int = 0
    """The newest view that all staying ranks have entered."""
    held: Mapping[str, Held] = field(default_factory=dict)
    """By node: what its workers hold and etcd has lost."""
    leader: Leader | None = None
    """The leader that was proclaimed last."""
    run: str = ""
    attempts: Attempts = field(default_factory=Attempts)
    reports: tuple[ReportedFailure, ...] = ()
    """Reports of failed ranks."""
    has_progressed: bool = False
    """Whether the ranks of the view have completed a step together, as far as this leader has seen."""
    released: Mapping[str, Released] = field(default_factory=dict)
    arrivals: Mapping[str, Arrivals] = field(default_factory=dict)
    """By node: the ranks that wait at barriers."""
    outdated_refusals: tuple[WorkerId, ...] = ()
    """Workers that are gone and whose refusal is still recorded."""
    outdated_schemas: tuple[str, ...] = ()
    """Digests of schemas that no worker uses."""


class ProgressDetector:
    """Observes one node: a rank that begins a step has completed the one before, and no rank completes a step alone.

    Limit: if ranks do not wait for each other in a step, one rank counts for all. A detector that starts late, such as
    a new leader's, has to see two more steps begin.
    """

    def __init__(self) -> None:
        self._view = 0
        self._begun: int | None = None
        self._progressed = False

    def __repr__(self) -> str:
        return f"ProgressDetector(view {self._view}, from step {self._begun}, progressed={self._progressed})"

    def progressed(self, view: int, step: int | None) -> bool:
        """Whether the view has progressed. `step` is the highest that a rank of the node has begun, None before the
        first."""
        if view != self._view:
            self._view, self._begun, self._progressed = view, step, False
        elif step is not None and (self._begun is None or step < self._begun):
            self._begun = step
        # The former workers may have completed the step that ran when the view was formed, and begun the next one.
        self._progressed = self._progressed or (
            step is not None and self._begun is not None and step >= self._begun + 2
        )
        return self._progressed
