"""How a run is now: who leads, which ranks live, at which step, with which values, and what is under way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field, replace

from instep.control._attempts import AttemptsFacts, attempts_of
from instep.control._checkpoints import Checkpoint, FailedSaveFacts, failed_save_of, newest_of
from instep.control._drift import drift_now
from instep.control._epochs import EpochFacts, epoch_of
from instep.control._facts import Facts, ValueChange
from instep.control._feed import Feed
from instep.control._get import Value, values_of
from instep.control._history import Entry, entries_of
from instep.control._load import load
from instep.control._orders import what_of
from instep.control._picture import Picture
from instep.control._rendezvous import rendezvous_keys
from instep.control._runs import RunState, require_run, state_of
from instep.control._text import format_changes
from instep.control._torchrun import RendezvousFacts, RestartsFacts, rendezvous_of, restarts_of
from instep.control._under_way import (
    PausedFacts,
    SavingFacts,
    StoppingFacts,
    WaitingFacts,
    paused_of,
    saving_of,
    stopping_of,
    waiting_of,
)
from instep.errors import Compacted, EtcdError, EtcdFull, RunNotFound
from instep.etcd import Client
from instep.protocol import membership
from instep.protocol.keys import Keys
from instep.protocol.records import Plan, PlanKind, format_ranks
from instep.scalar import Scalar
from instep.tasks import all_of

MAX_GROUPS = 12
"""Groups of ranks, and nodes that are waited for, that a status names one by one."""
MAX_LEASES = 64
"""Leases that a status looks at."""
RECENT = 3
_SILENT_S = 2
"""A node renews its lease ten times in its time to live; silent is one that has not for so many seconds and a third
of it."""
_MIN_PAUSE_S = 0.1
_ALARMS_S = 1.0
_LOST_S = 30.0
_LOST = (
    "etcd's history went back, and it holds nothing of this run: what is shown is old; a run that trains writes back "
    "what its ranks hold"
)


@dataclass(frozen=True, slots=True)
class ViewFacts(Facts):
    number: int
    world_size: int
    nodes: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class LeaderFacts(Facts):
    node: str
    host: str
    rank: int
    token: int


@dataclass(frozen=True, slots=True)
class RankFacts(Facts):
    """Ranks of the view as ranges (`0-5,7`), empty when there are none.

    `silent` are registered, but their node has not renewed its lease for up to `silent_s` seconds: they are not counted
    as alive. Their node may be lost or without etcd; when the lease ends they are missing.
    """

    alive: str
    missing: str
    left: str
    alive_count: int
    missing_count: int
    left_count: int
    silent: str = ""
    silent_count: int = 0
    silent_s: int | None = None


@dataclass(frozen=True, slots=True)
class RanksAtStep(Facts):
    step: int
    ranks: str
    count: int


@dataclass(frozen=True, slots=True)
class StepFacts(Facts):
    """From the ranks' latest reports, which may be seconds old. `groups` names the 12 largest, the furthest first."""

    lowest: int
    highest: int
    reporting: int
    groups: tuple[RanksAtStep, ...]
    step_time_s: float | None
    metrics_rank: int
    metrics: dict[str, float] = field(default_factory=dict)
    """What rank `metrics_rank`, the lowest that reports, said last."""


@dataclass(frozen=True, slots=True)
class NodeWaiting(Facts):
    node: str
    host: str
    ranks: str


@dataclass(frozen=True, slots=True)
class PlanFacts(Facts):
    """The plan under way: open until decided, then committed until every rank has applied it."""

    number: int
    state: str
    gate: int
    attempt: int
    changes: tuple[ValueChange, ...]
    author: str | None
    reason: str | None
    armed: int
    applied: int
    ranks: int
    waiting: tuple[NodeWaiting, ...]
    """Nodes that have not answered, or not applied it: the first 12."""
    waiting_more: int
    kind: PlanKind = "config"
    """Of a command what it is; `name` is then the action's, or the checkpoint's to go back to."""
    name: str | None = None
    save: bool | None = None
    """Of a stop: whether a checkpoint is saved first."""

    @property
    def what(self) -> str:
        """`lr 3e-4 → 1e-4`, or `act evaluate`."""
        if self.kind == "config":
            return format_changes(self.changes)
        return what_of(self.kind, self.name, save=self.save is not False)


@dataclass(frozen=True, slots=True)
class Status(Facts):
    run: str
    namespace: str
    endpoint: str
    revision: int
    state: RunState
    live: bool
    view: ViewFacts | None
    leader: LeaderFacts | None
    ranks: RankFacts
    steps: StepFacts | None
    values: tuple[Value, ...]
    plan: PlanFacts | None
    recent: tuple[Entry, ...]
    replays: str | None = None
    """Digest of the schedule that the values come from: `values` are then those that it begins with."""
    paused: PausedFacts | None = None
    stopping: StoppingFacts | None = None
    saving: SavingFacts | None = None
    checkpoint: Checkpoint | None = None
    """The newest one that is committed."""
    failed_save: FailedSaveFacts | None = None
    """The save that failed last, while no later one is committed."""
    commands: tuple[WaitingFacts, ...] = ()
    """Those that wait, the next one first; one that a plan is open for is that plan."""
    attempts: AttemptsFacts | None = None
    """How often the run has failed since it ended cleanly; None for never."""
    restarts: RestartsFacts | None = None
    """torchrun's own count of them; None where no worker that lives was started by it."""
    rendezvous: RendezvousFacts | None = None
    """Of torchrun's agents; None for a run without `--rdzv-backend=etcd3`."""
    versions: dict[str, str] = field(default_factory=dict)
    """Ranks that live, as ranges, by the version of Instep that their agent runs; one run should use one version."""
    drift: dict[str, str] = field(default_factory=dict)
    """By hyperparameter, the ranks whose optimizer does not hold it as agreed, as they reported last."""
    epoch: EpochFacts | None = None
    """The last time that etcd's history went back, or that checkpoints were adopted; None for never."""
    trouble: str | None = None
    """What is wrong with etcd itself, and the cure, in one sentence: while it lasts, changes wait."""


async def status(client: Client, keys: Keys) -> Status:
    """The run at one revision of etcd. Raises RunNotFound. Summaries stay small at any number of ranks."""
    loading = load(client, keys, members=True, metrics=True, rendezvous=True, starts=RECENT)
    picture, trouble = await all_of(loading, _trouble(client))
    if picture.empty:
        await require_run(client, keys)
    picture.silent_s = await _silent(client, picture)
    return replace(status_of(picture, client.endpoint), trouble=trouble)


async def _silent(client: Client, picture: Picture) -> dict[int, int]:
    """Leases that have not been renewed for some seconds, with their number. Of very many nodes those are asked about
    whose ranks' reports are behind."""
    steps = {rank: item.step or 0 for rank, item in picture.metrics.items()}
    behind = sorted(picture.leases, key=lambda lease: min(steps.get(rank, -1) for rank in picture.leases[lease]))
    asked = behind[:MAX_LEASES]
    try:
        found = await all_of(*(client.lease_unrenewed(lease, timeout_s=_ALARMS_S) for lease in asked))
    except EtcdError:
        return {}  # a status must not fail for want of it
    return {
        lease: unrenewed_s
        for lease, (unrenewed_s, ttl_s) in zip(asked, found, strict=True)
        if unrenewed_s >= max(_SILENT_S, ttl_s / 3)
    }


async def _trouble(client: Client) -> str | None:
    """None also when etcd does not tell: a status must not fail for want of it."""
    try:
        alarms = await client.alarms(timeout_s=_ALARMS_S)
    except EtcdError:
        return None
    if "NOSPACE" in alarms:
        return f"etcd takes no writes, so changes wait while training goes on: {EtcdFull.REASON}"
    if alarms:
        return f"etcd has raised the alarm {', '.join(alarms)}: see 'etcdctl alarm list' and etcd's own log"
    return None


async def watch_status(client: Client, keys: Keys, *, tick_s: float = 1.0) -> AsyncGenerator[Status]:
    """A status at once, then after every change of state, config or rendezvous and every `tick_s` seconds, without end.

    At most ten a second, and less often where reading takes long: it rests ten times as long as it reads,
    unless the run's state changes. Where etcd's history went back and it holds nothing of the run any more, the ranks
    have 30 s to write back what they hold. Close it (`contextlib.aclosing`) when you leave.
    """
    now: Status | None = None
    lost_at: float | None = None
    while True:
        began, changes = time.monotonic(), client.history.changes
        try:
            now = await status(client, keys)
            lost_at = None
        except RunNotFound:
            lost_at = lost_at or began
            if not client.history.changes or began - lost_at > _LOST_S:
                raise
            if now is not None:
                yield replace(now, trouble=_LOST)
            await asyncio.sleep(tick_s)
            continue
        with suppress(Compacted, RunNotFound):
            async with Feed(client, changes) as feed:
                for prefix in (keys.state, keys.desires, keys.left, rendezvous_keys(keys).root):
                    feed.add(prefix, now.revision + 1)
                while True:
                    yield now
                    spent_s = time.monotonic() - began
                    with suppress(TimeoutError):
                        await asyncio.wait_for(feed.next(), max(tick_s, 10 * spent_s))
                    await asyncio.sleep(_MIN_PAUSE_S)
                    began = time.monotonic()
                    now = await status(client, keys)


def status_of(picture: Picture, endpoint: str) -> Status:
    """The status that a picture with members and metrics shows. Pure."""
    view, leader = picture.view, picture.leader
    return Status(
        run=picture.keys.run,
        namespace=picture.keys.namespace,
        endpoint=endpoint,
        revision=picture.revision,
        state=state_of(picture),
        live=picture.live,
        view=ViewFacts(view.number, view.world_size, len(view.nodes), view.fresh) if view else None,
        leader=LeaderFacts(leader.node, leader.host or leader.node, leader.rank, leader.token)
        if leader and picture.live
        else None,
        ranks=_ranks(picture),
        steps=_steps(picture),
        values=values_of(picture),
        replays=picture.schema.replays,
        paused=paused_of(picture),
        stopping=stopping_of(picture),
        saving=saving_of(picture),
        checkpoint=newest_of(picture),
        failed_save=failed_save_of(picture.failed_save()),
        commands=waiting_of(picture),
        attempts=attempts_of(picture),
        restarts=restarts_of(picture),
        rendezvous=rendezvous_of(picture),
        drift=drift_now(picture),
        versions=_versions(picture),
        epoch=epoch_of(picture),
        plan=_plan(picture),
        recent=tuple(entry for entry in entries_of(picture) if entry.outcome not in ("open", "committed"))[:RECENT],
    )


def _ranks(picture: Picture) -> RankFacts:
    left, missing = picture.ranks_left(), picture.ranks_missing()
    if picture.view is None:
        alive = {item.member.rank for item in picture.members.values()}
    else:
        alive = picture.ranks() - left - missing
    silent = alive & picture.ranks_silent()
    alive -= silent
    return RankFacts(
        alive=format_ranks(alive),
        missing=format_ranks(missing),
        left=format_ranks(left),
        alive_count=len(alive),
        missing_count=len(missing),
        left_count=len(left),
        silent=format_ranks(silent),
        silent_count=len(silent),
        silent_s=max(picture.silent_s.values()) if silent else None,
    )


def _versions(picture: Picture) -> dict[str, str]:
    ranks = membership.ranks_by_version(picture.members.values())
    return {version: format_ranks(ranks) for version, ranks in ranks.items()}


def _steps(picture: Picture) -> StepFacts | None:
    reports = dict(sorted(picture.metrics.items()))
    by_step: dict[int, list[int]] = {}
    for rank, item in reports.items():
        if item.step is not None:
            by_step.setdefault(item.step, []).append(rank)
    if not by_step:
        return None
    largest = sorted(by_step, key=lambda step: len(by_step[step]), reverse=True)[:MAX_GROUPS]
    times = [item.step_time_s for item in reports.values() if item.step_time_s is not None]
    first = min(reports)
    return StepFacts(
        lowest=min(by_step),
        highest=max(by_step),
        reporting=sum(map(len, by_step.values())),
        groups=tuple(
            RanksAtStep(step, format_ranks(by_step[step]), len(by_step[step])) for step in sorted(largest, reverse=True)
        ),
        step_time_s=max(times, default=None),
        metrics_rank=first,
        metrics=dict(reports[first].metrics),
    )


def _plan(picture: Picture) -> PlanFacts | None:
    plan = picture.newest_plan
    decision = picture.decisions.get(plan.number) if plan else None
    if plan is None or (decision is not None and not decision.commit):
        return None
    if picture.view is None or picture.view.number != plan.view:
        return None
    applied = picture.steps_applied(plan.number).keys() & picture.ranks()
    counting = (picture.ranks() - picture.ranks_left()) | applied
    armed = picture.ranks_armed(plan.number) & counting if decision is None else counting
    waiting = counting - (armed if decision is None else applied)
    if decision is not None and not waiting:
        return None
    nodes = _nodes_waiting(picture, waiting)
    previous: dict[str, Scalar] = plan.previous
    return PlanFacts(
        number=plan.number,
        state="open" if decision is None else "committed",
        gate=plan.gate,
        attempt=_attempt(picture, plan),
        changes=tuple(
            ValueChange(name, previous.get(name), value, previous.get(name) is not None)
            for name, value in plan.values.items()
        ),
        author=plan.author,
        reason=plan.reason,
        armed=len(armed),
        applied=len(applied),
        ranks=len(counting),
        waiting=nodes[:MAX_GROUPS],
        waiting_more=max(0, len(nodes) - MAX_GROUPS),
        kind=plan.kind,
        name=plan.name,
        save=plan.course is not None and plan.course.save_at is not None if plan.kind == "stop" else None,
    )


def _attempt(picture: Picture, plan: Plan) -> int:
    same = (plan.revision, plan.kind, plan.change_id)
    return sum(1 for other in picture.plans.values() if (other.revision, other.kind, other.change_id) == same)


def _nodes_waiting(picture: Picture, waiting: set[int]) -> tuple[NodeWaiting, ...]:
    hosts = {item.member.node: item.member.host for item in picture.members.values()}
    nodes = picture.view.nodes if picture.view else {}
    return tuple(
        NodeWaiting(node, hosts.get(node, ""), format_ranks(ranks))
        for node, members in nodes.items()
        if (ranks := [rank for rank in members.ranks if rank in waiting])
    )
