"""What the keys hold: JSON documents, checked when read, since anyone with access to etcd can write there."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from instep.coordination.token import MAX_EPOCH
from instep.names import INCARNATION_LENGTH
from instep.scalar import Scalar
from instep.wire import PROTOCOL

PlanKind: TypeAlias = Literal["config", "pause", "resume", "stop", "checkpoint", "action", "restore"]
CommandKind: TypeAlias = Literal["pause", "resume", "stop", "checkpoint", "action", "restore"]

MAX_RANKS = 1_000_000
"""What a damaged document may make us hold; the design is for 10,240."""


class WorkerId(NamedTuple):
    """Identifies one process of a run. The incarnation alone does not: it is drawn at random by each process."""

    rank: int
    incarnation: str

    def __str__(self) -> str:
        """As a part of a key."""
        return f"{self.rank}-{self.incarnation}"


class Record(BaseModel):
    """A document in etcd. Unknown fields are passed over, so that a newer version can add some."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")

    def encode(self) -> str:
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        """Raises ValueError (pydantic's) when the text is no such document."""
        return cls.model_validate_json(text)

    @classmethod
    def decode_or_none(cls, text: str | bytes | None) -> Self | None:
        """None also for a document that cannot be read: a damaged record must not stop an agent."""
        if text is None:
            return None
        try:
            return cls.decode(text)
        except (ValueError, RecursionError):
            return None


class Elastic(Record):
    """What torchrun passed to a worker, for people; decisions use `run_id` only."""

    restarts: int = Field(ge=0)
    """How often its node's workers were started anew after a failure of their own; others' failures do not count."""
    max_restarts: int = Field(ge=0)
    group_rank: int | None = Field(default=None, ge=0)
    run_id: str = Field(default="", max_length=128)
    """The same for all workers that one torchrun job starts, in all its rounds; empty where that is not known."""


class Head(Record):
    """What a worker knows of the decisions: the newest that it knows to be committed, and the newest plan that it was
    told of and may have promised. As its agent knows, which never knows less than the worker."""

    plan: int
    digest: str
    told: int = 0


class Member(Record):
    """One registration of one worker; on its node's lease."""

    rank: int = Field(ge=0)
    world_size: int = Field(ge=1)
    incarnation: str = Field(pattern=r"^[A-Za-z0-9]{1,32}$")
    node: str = Field(pattern=r"^[A-Za-z0-9-]{1,40}$")
    host: str
    pid: int
    schema_digest: str
    view: int = 0
    """The newest view that the worker was in, 0 for one that is new: only a new one can take a place."""
    max_restarts: int | None = Field(default=None, ge=0)
    """How often the run may start again after a failure, as far as this worker is concerned."""
    elastic: Elastic | None = None
    """None for a worker that torchrun did not start."""
    version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9.+!_-]{1,64}$")
    """The agent's version of Instep; None before versions were registered."""
    take_over: bool = False
    """It may take the place of a process that trains."""
    protocol: int = PROTOCOL
    """Of the agent that wrote it. Members of another one cannot be in a view together."""
    head: Head | None = None
    """None for one that is new."""
    awaits: int = 0
    """Of a new one: the view that takes it for one that stays, in which it has yet to begin."""
    epoch: int = 0
    """The run's epoch when it was written: an earlier one may have been brought back with etcd's history."""

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)

    def may_replace(self, other: Member) -> bool:
        """Whether it may take the place of `other` while that one trains: it was asked to, or one torchrun job started
        both, in another round."""
        mine, theirs = (item.elastic.run_id if item.elastic is not None else "" for item in (self, other))
        return self.take_over or (mine != "" and mine == theirs)

    @property
    def can_be_named(self) -> bool:
        """Whether a view of this version can name it. Versions before protocol 3 drew shorter incarnations."""
        return self.protocol == PROTOCOL and len(self.incarnation) == INCARNATION_LENGTH


class NodeClaim(Record):
    """Which node holds a name: another node that happens to have the same name has another `claim`."""

    claim: str
    host: str = ""


class NodeMembers(Record):
    """The ranks of one node in a view: parallel, ranks rising; written short since a view may name 1280 nodes."""

    ranks: tuple[int, ...]
    incarnations: tuple[str, ...]


class Directive(Record):
    """What the ranks do beside training on, by step: so whoever joins later does it at the same step."""

    paused_at: int | None = None
    """They stand before this step until the run is resumed."""
    save_at: int | None = None
    """In this step `checkpoint_requested` holds."""
    ends_at: int | None = None
    """The first step that is not run."""
    reason: str | None = None
    """Why it is paused or ends, for people."""
    node: str | None = None
    """It ends for the sake of this node, which is about to go."""


class Snapshot(Record):
    """What a worker starts a view with: `previous` (if any) before step `gate`, `values` from it on."""

    values: dict[str, Scalar] = Field(default_factory=dict)
    plan: int = 0
    gate: int | None = None
    previous: dict[str, Scalar] | None = None
    course: Directive = Directive()
    origin: int = 0
    back: int = 0
    """As in Agreed."""
    checkpoint: str | None = None
    """The newest committed checkpoint when the view was formed; None when there was none."""
    vote: bool = False
    """The ranks have still to agree on it: nobody has gone on from a checkpoint since the run began anew."""
    digest: str = ""
    """As in Agreed."""


class View(Record):
    """Who trains: every rank from 0 to world_size - 1 once, each by one incarnation."""

    number: int = Field(ge=1)
    world_size: int = Field(ge=1)
    schema_digest: str
    nodes: dict[str, NodeMembers]
    start: Snapshot
    fresh: bool
    """True when all workers of the view were new, so that `start` was read from the desired config."""
    staying: str = ""
    """Ranks that have trained before. The others wait until all of these have entered the view with what it starts
    with: their registrations may have been of a history that is lost."""
    versions: tuple[str, ...] = ()
    """The agents' versions of Instep where they differ, else empty."""

    def incarnations(self) -> dict[int, str]:
        """Incarnation by rank."""
        return {
            rank: incarnation
            for node in self.nodes.values()
            for rank, incarnation in zip(node.ranks, node.incarnations, strict=True)
        }

    def workers(self) -> frozenset[WorkerId]:
        return frozenset(map(WorkerId._make, self.incarnations().items()))

    def encode(self) -> str:
        document = self.model_dump(exclude_none=True, exclude={"nodes"} if self.versions else {"nodes", "versions"})
        nodes = {name: [format_ranks(node.ranks), "".join(node.incarnations)] for name, node in self.nodes.items()}
        return json.dumps({**document, "nodes": nodes}, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        document = json.loads(text)
        if isinstance(document, dict) and isinstance(document.get("nodes"), dict):
            document["nodes"] = {name: _node_from_short(short) for name, short in document["nodes"].items()}
        return cls.model_validate(document)


class StartChange(Record):
    """Values that a fresh view started with and the ranks before it did not have: desired values of one revision; with
    revision 0 those of very many old ones, or the script's own values.

    The values are those of the start. `previous` holds what the view would have started with instead; a name that is
    not in it would have had no value.
    """

    revision: int
    names: tuple[str, ...]
    previous: dict[str, Scalar] = Field(default_factory=dict)
    author: str | None = None
    reason: str | None = None
    change_id: str | None = None


class Entered(Record):
    """Newcomers of `view` may begin: all staying ranks have entered it."""

    view: int


class StartOfView(Record):
    """What a fresh view began with: with the plans that follow, what a run was trained with."""

    view: int = Field(ge=1)
    values: dict[str, Scalar]
    plan: int = 0
    """The newest plan of the time before."""
    checkpoint: str | None = None
    """The newest committed checkpoint of that moment."""
    replays: str | None = None
    """Digest of the schedule that the view's values come from."""
    at: str | None = None
    """Wall clock of the leader's host, for people only."""
    changes: tuple[StartChange, ...] = ()
    """Changes made while no rank trained, the oldest first: no plan was made of them."""

    @property
    def before(self) -> dict[str, Scalar]:
        """What it would have begun with without those changes."""
        held = dict(self.values)
        for change in self.changes:
            for name in change.names:
                held.pop(name, None)
            held |= change.previous
        return held


class Origin(Record):
    """A checkpoint that a run went on from: in which view it was saved, and the newest plan of that moment."""

    id: str
    step: int
    view: int
    plan: int = 0


class FirstStep(Record):
    """Where a fresh view really began: said by its rank 0 at the first boundary."""

    step: int = Field(ge=0)
    origin: Origin | None = None
    """What its ranks have agreed to go on from."""


class Command(Record):
    """Something that all ranks are to do at one step. `name` is the action's, or the checkpoint's to go back to."""

    kind: CommandKind
    name: str | None = None
    save: bool = True
    """Of a stop: whether a checkpoint is saved first."""
    node: str | None = None
    """Of a stop: the node that is about to go, and for whose sake the run stops."""
    author: str | None = None
    reason: str | None = None


class Declined(Record):
    """A command that was not carried out, and why."""

    command: Command
    revision: int
    """The revision that wrote the command."""
    why: str


class Manifest(Record):
    """A committed checkpoint. Its files are listed, with their sums, in a file of its own beside them: `digest` is that
    file's sha256, so that neither can be exchanged unnoticed."""

    id: str = Field(pattern=r"^[0-9]{1,19}-[0-9]{1,19}$")
    """`<step>-<token>`."""
    step: int = Field(ge=0)
    """The step whose update it holds: a run goes on with the next one."""
    token: int
    path: str
    """The directory, as the saver's host names it."""
    layout: Literal["plain", "sharded", "custom"] = "custom"
    files: int = 0
    bytes: int = 0
    digest: str
    view: int
    world_size: int
    config: dict[str, Scalar] = Field(default_factory=dict)
    plan: int = 0
    """The newest plan agreed on at `step`."""
    rank: int
    host: str
    node: str
    duration_s: float
    lineage: tuple[str, ...] = ()
    """Ids of the checkpoints that its training went on from, the newest first: the pointer that it replaced, and that
    one's lineage, 20 at most. A fall-back follows it, never what a run has been taken back from."""
    committed_at: str
    """Wall clock of the saver's host, for people only."""


class Plan(Record):
    """A change or a command proposed for step `gate`. `values` are those that change; the rest of the agreed ones stay.

    A command changes no value; `course` is what holds from the gate on where it changes that.
    """

    number: int = Field(ge=1)
    view: int
    gate: int
    kind: PlanKind = "config"
    name: str | None = None
    course: Directive | None = None
    checkpoint: Manifest | None = None
    """What the run goes back to."""
    values: dict[str, Scalar]
    previous: dict[str, Scalar]
    revision: int
    author: str | None = None
    reason: str | None = None
    change_id: str | None = None
    opened_at: str | None = None
    """Wall clock of the leader's host, for people only: no decision looks at it."""
    parent: str = ""
    """The digest of what was agreed when it was opened: only workers that hold that promise it."""
    epoch: int = 0
    """Of the run, when it was opened."""
    restored: int | None = None
    """Of one that was written back: the epoch in which that was done."""

    @property
    def digest(self) -> str:
        """Names this plan and all that was agreed before it."""
        return _digest(self.model_dump_json(exclude={"restored"}, exclude_none=True))


class Decision(Record):
    """Written once per plan, never changed."""

    commit: bool
    reason: str | None = None
    by: str | None = None
    step: int | None = None
    """With an abort because a rank was late: the step that rank stood at."""
    refused: dict[str, str] | None = None
    """With an abort because a worker could not accept the values: reason by name. Not to be planned again."""


class Agreed(Record):
    """The values that every rank has, `previous` before step `gate`, the last that changed a value; and their course.

    `plan` is the newest that was committed, a command or a change.
    """

    plan: int
    view: int
    values: dict[str, Scalar]
    gate: int | None = None
    previous: dict[str, Scalar] | None = None
    revision: int = 0
    course: Directive = Directive()
    origin: int = 0
    """The view in which the run last began anew."""
    back: int = 0
    """The plan that last took the run back to a checkpoint, since then; 0 for none. What was saved before that plan
    belongs to a training that was left."""
    began: int = 0
    """The newest plan when the run last began anew: nothing up to it binds those who train now."""
    digest: str = ""
    """Of the plan committed last, or of the start of the run since then."""
    parent: str = ""
    """What `digest` was before that."""
    restored: int | None = None
    """The epoch in which the ranks wrote it back; None if it was never lost."""

    def as_start(self) -> Agreed:
        """With the digest of a start: what this run restarts with."""
        text = self.model_dump_json(exclude={"digest", "parent", "restored"}, exclude_none=True)
        return self.model_copy(update={"digest": _digest(text), "parent": self.digest})


class Held(Record):
    """What a node's workers hold beyond etcd: what was agreed, and the plan that it came from."""

    agreed: Agreed
    plan: Plan | None = None


class Epoch(Record):
    """Why tokens given from now on order after all given before: etcd's history has gone back, or checkpoints were
    adopted of which etcd knew nothing. A run without this record is in epoch 0."""

    number: int = Field(ge=1, le=MAX_EPOCH)
    why: str
    """One sentence for people."""
    before: int | None = None
    """The highest revision of etcd that was seen before it went back, where that is known."""
    after: int | None = None
    """The revision at which that was noticed."""
    author: str | None = None
    """The author of an adoption; None where the run noticed by itself."""
    settled: bool = False
    """All workers that train have reported what they hold, and etcd holds that again: nothing is decided before."""
    plan: int = 0
    digest: str = ""
    """The newest decision that one of them held when it was settled: what else was promised before is aborted."""
    told: int = 0
    """The highest plan number that one of them had heard of: new ones come after it."""
    view: int = 0
    """The newest view that one of them had been in."""
    problem: str | None = None
    """Why it cannot be settled."""
    at: str | None = None
    """Wall clock of the host that wrote it, for people only."""


class Leader(Record):
    """Who leads; `token` is made of the run's epoch and the create revision of the candidate key (see token.py), and
    fences every guarded write."""

    node: str
    rank: int
    incarnation: str
    candidate: str
    token: int
    host: str = ""
    term: int = 0
    """How many have led the run so far, this one included; a worker that leads again counts again."""

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)


class Candidate(Record):
    """Whom a node's candidate names. The oldest one that stands leads."""

    node: str
    rank: int
    incarnation: str
    yielded: int = 0
    """How often it has made way since each worker of its node has led and stalled; 0 where one has not. Who leads and
    stalls too gains nothing by making way for one that has."""

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)


CAME_FIRST = "another rank of its node came first"
"""Why a leader made way before it had trained."""


class Term(Record):
    """One leadership as it was proclaimed, kept for people."""

    term: int = Field(ge=1)
    node: str
    rank: int
    host: str = ""
    token: int
    at: str | None = None
    """Wall clock of the leader's host, for people only."""
    why: str | None = None
    """How the one before it ended, as far as its successor could know."""


class Resigned(Record):
    """Why a node has taken its candidate away that had `token`."""

    token: int
    why: str


class Ack(Record):
    """All ranks of a node promised not to run step `gate` before they know the decision. Never withdrawn."""

    node: str
    ranks: tuple[int, ...]
    digest: str = ""
    """Of the plan that they promised: another one may have its number once etcd's history has gone back."""


class Receipt(Record):
    """All ranks of a node that still run applied the plan, each before it ran `step`."""

    node: str
    steps: dict[int, int]
    """Step by rank: the first step run with the new values."""
    drift: dict[int, tuple[str, ...]] = Field(default_factory=dict)
    """By rank, which of the values its optimizer does not hold, as far as is known: something else writes them."""


class Left(Record):
    """Ranks of a node that ended cleanly in `view`; `last_step` is the highest that one of them ran, -1 for none.

    They count as having promised only gates after that step: a gate at or before it they have passed unasked.
    """

    view: int
    ranks: tuple[int, ...]
    last_step: int = -1


class Rejected(Record):
    """A desired value that is not applied, and why. It stands until the key is written again."""

    name: str
    value: str
    revision: int
    reason: str
    by: Literal["schema", "fixed", "worker", "script"] = "schema"
    """What refused it; `script`: the run was started with the script's value instead."""
    change_id: str | None = None
    author: str | None = None
    why: str | None = None
    """The reason that the author gave for the change."""


class Refused(Record):
    """A registration that cannot become part of the run; where the reason is that of others too, one record for all."""

    incarnation: str
    rank: int
    reason: str
    also: tuple[str, str] = ("", "")
    """Further ones, as a view names those of a node: a run may have 10,240 ranks, and every agent reads this."""

    @classmethod
    def of(cls, workers: Iterable[WorkerId], reason: str) -> Self:
        """One record for all of them, at least one."""
        first, *others = sorted(workers)
        also = (format_ranks(worker.rank for worker in others), "".join(worker.incarnation for worker in others))
        return cls(incarnation=first.incarnation, rank=first.rank, reason=reason, also=also)

    @field_validator("also")
    @classmethod
    def _names_workers(cls, also: tuple[str, str]) -> tuple[str, str]:
        _from_short(*also)
        return also

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)

    def workers(self) -> tuple[WorkerId, ...]:
        return (self.worker, *(WorkerId(*item) for item in zip(*_from_short(*self.also), strict=True)))


class Failure(Record):
    """How a rank of `view` ended that did not leave cleanly. `cause` is what is counted, `text` says more."""

    view: int
    rank: int
    host: str = ""
    cause: str
    text: str | None = None
    at: str | None = None
    """Wall clock of the rank's host, for people only."""


class Cleared(Record):
    """Who has cleared the count of failures, and how many there were."""

    failures: int
    author: str | None = None
    reason: str | None = None
    at: str | None = None
    """Wall clock of the host of who did it, for people only."""


class Attempts(Record):
    """Failures of the run since it ended cleanly, or since somebody cleared the count: one for each view that lost a
    rank, counted when that is replaced."""

    view: int = 0
    """The newest view of which it is known whether it counts."""
    counts: dict[str, int] = Field(default_factory=dict)
    """By cause."""
    failures: tuple[Failure, ...] = ()
    """The last 20, oldest first."""
    replaced: str = ""
    """Ranks that have been replaced since the last failure: all others were there when it happened."""
    cleared: Cleared | None = None

    @field_validator("replaced")
    @classmethod
    def _names_ranks(cls, text: str) -> str:
        parse_ranks(text)
        return text

    @property
    def total(self) -> int:
        return sum(self.counts.values())


class Forming(Record):
    """Which ranks the next view still waits for; for those who wait, no decision looks at it."""

    world_size: int
    missing: str

    @property
    def missing_ranks(self) -> tuple[int, ...]:
        return parse_ranks(self.missing)


class Change(Record):
    """Who asked for a put and why; written in the same txn, so its revision names the change."""

    id: str
    names: tuple[str, ...]
    author: str | None = None
    reason: str | None = None


class Pointer(Record):
    """The newest committed checkpoint, and what it took to save it."""

    id: str
    step: int
    token: int
    view: int = 0
    plan: int = 0
    """Of its manifest: they tell which training it belongs to."""
    duration_s: float = 0.0


class Saving(Record):
    """A checkpoint that is being written. Limit: it stays when its saver dies; the leader has another token then."""

    id: str
    step: int
    token: int
    rank: int


class FailedSave(Record):
    """A checkpoint that could not be saved; training continued without it."""

    step: int = Field(ge=0)
    rank: int
    host: str = ""
    text: str
    at: str | None = None
    """Wall clock of the saver's host, for people only."""


class FailedSaves(Record):
    """The last 20, oldest first."""

    saves: tuple[FailedSave, ...] = ()


class Resume(Record):
    """The checkpoint that the ranks of a view are asked to look at; `final`: the one that all of them go on from.

    `id` is None when there is none that can be used; `reasons` says by id why others cannot.
    """

    view: int
    id: str | None = None
    final: bool = False
    reasons: dict[str, str] = Field(default_factory=dict)


class Verified(Record):
    """Ranks of a node that found checkpoint `id` good, or the problem that one of them found."""

    view: int
    id: str
    ranks: tuple[int, ...] = ()
    problem: str | None = None


class Waiting(Record):
    """Ranks of a node that wait at one barrier."""

    ranks: tuple[int, ...]
    seen: int = 0
    """The revision of the barrier's last release: it has not let them through. 0 when there is none."""
    after: int = 0
    """Number of the last release that let one of them through, whichever barrier it was."""


class Arrivals(Record):
    """All that a node says of barriers: who of its ranks waits at which one, in `view`."""

    view: int
    waiting: dict[str, Waiting] = Field(default_factory=dict)


class Release(Record):
    """The last time that all ranks of `view` had come to a barrier. Numbers rise over all barriers of a run."""

    view: int
    number: int


class Metrics(Record):
    """The latest report of one rank; may be seconds old, and is dropped when etcd is away."""

    rank: int
    step: int | None = None
    step_time_s: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    actions: tuple[str, ...] | None = None
    """What `instep act` can ask of it: the first 64 names; None while it has not said."""
    restores: bool | None = None
    """Whether it can go back to a checkpoint; None while it has not said."""
    drift: tuple[str, ...] = ()
    """Hyperparameters that its optimizer does not hold as agreed."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def format_ranks(ranks: Iterable[int]) -> str:
    """`0-3,6` for 0, 1, 2, 3, 6."""
    parts: list[str] = []
    first = last = -9
    for rank in [*sorted(ranks), -1]:
        if rank == last + 1:
            last = rank
            continue
        if first >= 0:
            parts.append(str(first) if first == last else f"{first}-{last}")
        first = last = rank
    return ",".join(parts)


def parse_ranks(text: str) -> tuple[int, ...]:
    """The reverse of format_ranks; raises ValueError for anything else, and for more than a million ranks."""
    ranks: list[int] = []
    for part in filter(None, text.split(",")):
        if not re.fullmatch(r"[0-9]{1,7}(-[0-9]{1,7})?", part):
            raise ValueError(f"{part[:40]!r} is no range of ranks")
        first, _, last = part.partition("-")
        more = range(int(first), int(last or first) + 1)
        if not more or len(ranks) + len(more) > MAX_RANKS:
            raise ValueError(f"{part!r} is no range of ranks, or one of too many")
        ranks.extend(more)
    return tuple(ranks)


def _node_from_short(short: object) -> Mapping[str, object]:
    if not (isinstance(short, list) and len(short) == 2 and all(isinstance(part, str) for part in short)):
        raise ValueError(f"a view names a node by its ranks and incarnations, not by {short!r}")
    ranks, incarnations = _from_short(*short)
    return {"ranks": ranks, "incarnations": incarnations}


def _from_short(ranks_text: str, joined: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    ranks = parse_ranks(ranks_text)
    if len(joined) != len(ranks) * INCARNATION_LENGTH:
        raise ValueError("there must be one incarnation for each rank")
    starts = range(0, len(joined), INCARNATION_LENGTH)
    return ranks, tuple(joined[start : start + INCARNATION_LENGTH] for start in starts)
