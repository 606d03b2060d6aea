"""All messages between a worker and its node's agent: one union of documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, TypeAlias

from instep.scalar import Scalar
from instep.version import VERSION
from instep.wire import PROTOCOL
from instep.wire.codec import Document
from instep.wire.documents import Agreed, Elastic, Manifest, Origin, Plan, Pointer, Saving, Snapshot


class FromWorker(Document):
    """Base of all messages of a worker."""


class FromAgent(Document):
    """Base of all messages of an agent."""


class Hello(FromWorker, kw_only=True):
    """The first message of a connection. `protocol` and `version` keep their names in all versions."""

    protocol: int = PROTOCOL
    version: str = VERSION
    rank: int
    world_size: int
    incarnation: str
    host: str
    pid: int
    schema: Mapping[str, Any] | None = None
    view: int = 0
    undecided: int | None = None
    """The plan that it promised and whose decision it does not know."""
    agreed: Agreed | None = None
    told: Plan | None = None
    """The record of `undecided`."""
    heard: int = 0
    """The highest number of a plan that it promised or passed."""
    epoch: int = 0
    max_restarts: int | None = None
    elastic: Elastic | None = None
    take_over: bool = False


class OtherHello(FromWorker):
    """What a `Hello` of another protocol is read as."""

    version: str = "another version of Instep"


class Leave(FromWorker):
    """The worker ends after `step`, -1 for none. `error` and `text` name the exception that ends it, if one does."""

    clean: bool
    step: int
    error: str = ""
    text: str = ""


class MetricsReport(FromWorker):
    metrics: Mapping[str, float]


class WorkerStatus(FromWorker):
    """What operators can ask of the worker, and the hyperparameters that it does not train with as agreed."""

    actions: tuple[str, ...]
    restores: bool
    drift: tuple[str, ...]


class PreemptionNotice(FromWorker):
    """The worker's process received a preemption signal."""

    reason: str


class DryRunResult(FromWorker):
    """`refused`: by revision, the reason for each refused name."""

    number: int
    refused: tuple[tuple[int, Mapping[str, str]], ...]


class PlanAnswer(FromWorker):
    """About the plan with that number and digest."""

    number: int
    digest: str


class PlanArmed(PlanAnswer):
    """The worker promises not to run the gate's step before it knows the decision."""


class PlanLate(PlanAnswer):
    """The worker is past the gate: it is about to run `step`."""

    step: int


class PlanRefused(PlanAnswer):
    problems: dict[str, str]


class PlanForeign(PlanAnswer):
    """The plan does not follow from `holds`, which is what the worker trains with."""

    holds: str


class PlanApplied(PlanAnswer):
    """`drift`: which of its values the optimizer does not hold; None if the worker has not checked."""

    step: int
    drift: tuple[str, ...] | None = None


class AtGate(PlanAnswer):
    """The worker waits before `step` for the decision on a plan that it promised."""

    epoch: int
    step: int


class Began(FromWorker):
    """The first step that the worker runs in `view`, and the checkpoint that it resumed from."""

    view: int
    step: int
    origin: Origin | None = None


class EnterBarrier(FromWorker):
    """`after`: the last release that let the worker through."""

    name: str
    view: int
    after: int


class LeaveBarrier(FromWorker):
    """The worker no longer waits."""


class AskBarrier(FromWorker):
    """Which ranks are missing? `MissingRanks` answers."""

    q: int
    name: str


class SaveStarted(FromWorker):
    saving: Saving
    candidate: str


class SaveAbandoned(FromWorker):
    id: str


class SaveFailed(FromWorker):
    step: int
    text: str


class CommitCheckpoint(FromWorker):
    """`CommitResult` answers, as often as it is sent."""

    candidate: str
    manifest: Manifest


class ListCheckpoints(FromWorker):
    """`Inventory` answers."""

    q: int


class ForgetCheckpoints(FromWorker):
    """`CheckpointIds` answers: those that are off the registry."""

    q: int
    ids: tuple[str, ...]


class AdoptCheckpoints(FromWorker):
    """`CheckpointIds` answers: those that are registered."""

    q: int
    manifests: tuple[Manifest, ...]
    token: int
    candidate: str


class ReadCheckpoint(FromWorker):
    """The worker reads it: it is not forgotten until `ReadDone`. With `q`, `CheckpointIds` answers: it, or none."""

    id: str
    q: int | None = None


class ReadDone(FromWorker):
    id: str


class AwaitOffer(FromWorker):
    """The worker waits for an `Offer`."""


class Vote(FromWorker):
    view: int
    id: str
    problem: str | None = None


class AskVoters(FromWorker):
    """Which ranks have not voted? `MissingRanks` answers."""

    q: int


class EnterView(FromAgent):
    """The worker is part of view `view`; `start` applies if it is its first one."""

    view: int
    start: Snapshot
    node: str
    agreed: Agreed


class JoinWait(FromAgent):
    """What a worker that joins waits for."""

    text: str
    missing: tuple[int, ...] = ()
    urgent: bool = False


class Failure(FromAgent):
    """Why the agent cannot serve the worker. It keeps its name and fields in all versions."""

    kind: str
    text: str


class Note(FromAgent):
    """For the training's log, with a level of `logging`."""

    level: int
    text: str


class Bye(FromAgent):
    """Answers `Leave`: etcd has recorded it."""


class LostRanks(FromAgent):
    """For a preempted worker: ranks that are gone and not replaced, without which no stop can be agreed on."""

    ranks: tuple[int, ...]


class NewEpoch(FromAgent):
    number: int


class Leads(FromAgent):
    """The fencing token with which the worker leads the run, 0 if it does not lead, and its candidate key."""

    token: int
    candidate: str


class AskDryRun(FromAgent):
    """Asks whether the worker could start with `values`. If not, `groups` are tried one by one on `base`."""

    number: int
    values: Mapping[str, Scalar]
    base: Mapping[str, Scalar]
    groups: tuple[tuple[int, Mapping[str, Scalar]], ...]


class ProposePlan(FromAgent):
    """`then` is the agreed state after a commit, if the plan follows from the current one."""

    plan: Plan
    then: Agreed | None = None


class Decide(FromAgent):
    """`digest` names the plan, if known: a plan of a lost history may have had the same number."""

    number: int
    commit: bool
    digest: str = ""


class BarrierReleased(FromAgent):
    name: str
    number: int


class CheckpointNews(FromAgent):
    """The newest committed checkpoint, and the one that is being written."""

    saved: Pointer | None = None
    saving: Saving | None = None


class CommitResult(FromAgent):
    id: str
    path: str
    problem: str | None = None
    """Why the checkpoint was refused: another rank leads."""


class Offer(FromAgent):
    """A checkpoint to vote on; with `final`, the one to resume from. `id` is None where there is none, `manifest` where
    it was forgotten; `reasons` says by id why others cannot be used."""

    view: int
    id: str | None = None
    final: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None


class QueryResult(FromAgent):
    q: int
    """The number of the query."""


class Inventory(QueryResult):
    """The registry at one moment. `ids` are of all checkpoints, `manifests` of those that the answer had room for, the
    newest first, and `newest` is what a start resumes from. `led`: the node's agent knows a leader."""

    manifests: tuple[Manifest, ...]
    ids: frozenset[str]
    newest: str | None = None
    led: bool = False


class CheckpointIds(QueryResult):
    ids: tuple[str, ...]


class MissingRanks(QueryResult):
    """`elsewhere`: ranks that wait at another barrier, by its name."""

    ranks: tuple[int, ...]
    elsewhere: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


class QueryFailure(QueryResult):
    problem: str


Query: TypeAlias = AskBarrier | AskVoters | ListCheckpoints | ForgetCheckpoints | AdoptCheckpoints | ReadCheckpoint
