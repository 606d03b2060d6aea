"""The status of a run: its leader, the ranks alive and their steps, the values, and what is in progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace

from instep.control._cache import RunCache
from instep.control._change import AttemptsReport, attempts_of
from instep.control._checkpoints import CheckpointReport, FailedSaveReport, failed_save_of, newest_of
from instep.control._history import EpochReport, HistoryEntry, entries_of, epoch_of, saves_first, what_of
from instep.control._progress import attempt_of, drift_now, progress_of_plan
from instep.control._read import MultiWatch, load
from instep.control._report import JsonReport, ValueChange, planned_changes
from instep.control._runs import (
    PausedReport,
    RunState,
    SavingReport,
    StoppingReport,
    WaitingReport,
    paused_of,
    saving_of,
    state_of,
    stopping_of,
    waiting_of,
)
from instep.control._torchrun import RendezvousReport, RestartsReport, rendezvous_keys, rendezvous_of, restarts_of
from instep.control._values import ValueStatus, values_of
from instep.errors import Compacted, EtcdError, EtcdFull, RunNotFound
from instep.etcd import Client
from instep.protocol import membership
from instep.protocol.keys import Keys
from instep.protocol.records import format_ranks
from instep.tasks import all_of

MAX_GROUPS = 12
"""Groups of ranks, and nodes that a plan waits for, that a status lists."""
MAX_LEASES = 64
"""Leases that a status asks etcd about."""
RECENT = 3
_SILENT_S = 2
"""A node renews its lease ten times within its time to live. It is silent after so many seconds without a renewal, and
after a third of the time to live."""
_MIN_PAUSE_S = 0.1
_ALARMS_S = 1.0
_LOST_S = 30.0
_LOST = (
    "etcd's history went back, and it holds nothing of this run: this status is old; if the run trains, its ranks "
    "write back what they hold"
)


@dataclass(frozen=True, slots=True)
class ViewReport(JsonReport):
    number: int
    world_size: int
    nodes: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class LeaderReport(JsonReport):
    node: str
    host: str
    rank: int
    token: int


@dataclass(frozen=True, slots=True)
class RankReport(JsonReport):
    """Ranks of the view as ranges (`0-5,7`), empty if there are none.

    `silent` ranks are registered, but their node has not renewed its lease for up to `silent_s` seconds: they do not
    count as alive. Their node may be lost or unable to reach etcd; when the lease expires they are missing.
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
class RanksAtStep(JsonReport):
    step: int
    ranks: str
    count: int


@dataclass(frozen=True, slots=True)
class StepReport(JsonReport):
    """From the ranks' latest reports, which may be seconds old. `groups` are the 12 largest, the highest step first."""

    lowest: int
    highest: int
    reporting: int
    groups: tuple[RanksAtStep, ...]
    step_time_s: float | None
    metrics_rank: int
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest report of rank `metrics_rank`, the lowest that reports."""


@dataclass(frozen=True, slots=True)
class NodeWaiting(JsonReport):
    node: str
    host: str
    ranks: str


@dataclass(frozen=True, slots=True)
class PlanReport(JsonReport):
    """The plan in progress: open until it is decided, then committed until every rank has applied it."""

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
    """Nodes that have not answered, or not applied it yet: the first 12."""
    waiting_more: int
    kind: str = "config"
    """The command's name; `config` for a change. `name` is then the action, or the checkpoint to go back to."""
    name: str | None = None
    save: bool | None = None
    """For a stop: whether a checkpoint is saved first."""

    @property
    def what(self) -> str:
        return what_of(self.changes, self.kind, self.name, self.save)


@dataclass(frozen=True, slots=True)
class RunStatus(JsonReport):
    run: str
    namespace: str
    endpoint: str
    revision: int
    state: RunState
    live: bool
    view: ViewReport | None
    leader: LeaderReport | None
    ranks: RankReport
    steps: StepReport | None
    values: tuple[ValueStatus, ...]
    plan: PlanReport | None
    recent: tuple[HistoryEntry, ...]
    replays: str | None = None
    """Digest of the schedule that the run replays: `values` are then those at its start."""
    paused: PausedReport | None = None
    stopping: StoppingReport | None = None
    saving: SavingReport | None = None
    checkpoint: CheckpointReport | None = None
    """The newest committed one."""
    failed_save: FailedSaveReport | None = None
    """The save that failed last, unless a later one was committed."""
    commands: tuple[WaitingReport, ...] = ()
    """Those that wait, the next one first, without the command that the open plan is for."""
    attempts: AttemptsReport | None = None
    """How often the run has failed since its last clean end; None for never."""
    restarts: RestartsReport | None = None
    """torchrun's own count of restarts; None if it started none of the live workers."""
    rendezvous: RendezvousReport | None = None
    """The rendezvous of torchrun's agents; None without `--rdzv-backend=etcd3`."""
    versions: dict[str, str] = field(default_factory=dict)
    """Live ranks, as ranges, by the version of Instep that their agent runs; a run should use one version."""
    drift: dict[str, str] = field(default_factory=dict)
    """By hyperparameter, the ranks whose optimizer does not hold it as agreed, according to their latest reports."""
    epoch: EpochReport | None = None
    """The last time that etcd's history went back, or that checkpoints were adopted; None for never."""
    trouble: str | None = None
    """A problem of etcd itself, with the fix: changes wait until it is solved."""


async def status(client: Client, keys: Keys) -> RunStatus:
    """The run at one revision of etcd. Raises RunNotFound. It stays small at any number of ranks."""
    loading = load(client, keys, members=True, metrics=True, rendezvous=True, starts=RECENT)
    cache, trouble = await all_of(loading, _trouble(client))
    cache.silent_s = await _silent(client, cache)
    return replace(status_of(cache, client.endpoint), trouble=trouble)


async def _silent(client: Client, cache: RunCache) -> dict[int, int]:
    """Seconds since the last renewal, for leases that were not renewed for a while. With many nodes, etcd is asked only
    about those whose ranks' reports are behind."""
    steps = {rank: item.step or 0 for rank, item in cache.metrics.items()}
    behind = sorted(cache.leases, key=lambda lease: min(steps.get(rank, -1) for rank in cache.leases[lease]))
    asked = behind[:MAX_LEASES]
    try:
        found = await all_of(*(client.lease_unrenewed(lease, timeout_s=_ALARMS_S) for lease in asked))
    except EtcdError:
        return {}  # a status does not depend on it
    return {
        lease: unrenewed_s
        for lease, (unrenewed_s, ttl_s) in zip(asked, found, strict=True)
        if unrenewed_s >= max(_SILENT_S, ttl_s / 3)
    }


async def _trouble(client: Client) -> str | None:
    """None also if etcd does not answer: a status does not depend on it."""
    try:
        alarms = await client.alarms(timeout_s=_ALARMS_S)
    except EtcdError:
        return None
    if "NOSPACE" in alarms:
        return f"etcd takes no writes, so changes wait while training continues: {EtcdFull.REASON}"
    if alarms:
        return f"etcd has raised the alarm {', '.join(alarms)}: see 'etcdctl alarm list' and etcd's own log"
    return None


async def watch_status(client: Client, keys: Keys, *, tick_s: float = 1.0) -> AsyncGenerator[RunStatus]:
    """A status at once, then after every change of state, config or rendezvous, and every `tick_s` seconds, endlessly.

    At most ten per second. If a read takes long, it pauses ten times as long, unless the run's state changes. If etcd's
    history went back and etcd holds nothing of the run, it waits 30 s for the ranks to write back what they hold.
    Close it (`contextlib.aclosing`) when you leave.
    """
    now: RunStatus | None = None
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
            async with MultiWatch(client, changes) as watch:
                for prefix in (keys.state, keys.desires, keys.left, rendezvous_keys(keys).root):
                    watch.add(prefix, now.revision + 1)
                while True:
                    yield now
                    spent_s = time.monotonic() - began
                    with suppress(TimeoutError):
                        await asyncio.wait_for(watch.next(), max(tick_s, 10 * spent_s))
                    await asyncio.sleep(_MIN_PAUSE_S)
                    began = time.monotonic()
                    now = await status(client, keys)


def status_of(cache: RunCache, endpoint: str) -> RunStatus:
    """The status, from a cache with members, metrics, rendezvous and starts. Pure."""
    view, leader = cache.view, cache.leader
    members = [item.member for item in cache.members.values()]
    return RunStatus(
        run=cache.keys.run,
        namespace=cache.keys.namespace,
        endpoint=endpoint,
        revision=cache.revision,
        state=state_of(cache),
        live=cache.live,
        view=ViewReport(view.number, view.world_size, len(view.nodes), view.fresh) if view else None,
        leader=LeaderReport(leader.node, leader.host or leader.node, leader.rank, leader.token)
        if leader and cache.live
        else None,
        ranks=_ranks(cache),
        steps=_steps(cache),
        values=values_of(cache),
        replays=cache.schema.replays,
        paused=paused_of(cache),
        stopping=stopping_of(cache),
        saving=saving_of(cache),
        checkpoint=newest_of(cache),
        failed_save=failed_save_of(cache.failed_save()),
        commands=waiting_of(cache),
        attempts=attempts_of(cache),
        restarts=restarts_of(members),
        rendezvous=rendezvous_of(cache.rendezvous, members),
        drift=drift_now(cache),
        versions=_versions(cache),
        epoch=epoch_of(cache),
        plan=_plan(cache),
        recent=tuple(entry for entry in entries_of(cache) if entry.outcome not in ("open", "committed"))[:RECENT],
    )


def _ranks(cache: RunCache) -> RankReport:
    left, missing = cache.ranks_left(), cache.ranks_missing()
    if cache.view is None:
        alive = {item.member.rank for item in cache.members.values()}
    else:
        alive = cache.ranks_active() - missing
    silent = alive & cache.ranks_silent()
    alive -= silent
    return RankReport(
        alive=format_ranks(alive),
        missing=format_ranks(missing),
        left=format_ranks(left),
        alive_count=len(alive),
        missing_count=len(missing),
        left_count=len(left),
        silent=format_ranks(silent),
        silent_count=len(silent),
        silent_s=max(cache.silent_s.values()) if silent else None,
    )


def _versions(cache: RunCache) -> dict[str, str]:
    ranks = membership.ranks_by_version(cache.members.values())
    return {version: format_ranks(ranks) for version, ranks in ranks.items()}


def _steps(cache: RunCache) -> StepReport | None:
    reports = dict(sorted(cache.metrics.items()))
    by_step: dict[int, list[int]] = {}
    for rank, item in reports.items():
        if item.step is not None:
            by_step.setdefault(item.step, []).append(rank)
    if not by_step:
        return None
    largest = sorted(by_step, key=lambda step: len(by_step[step]), reverse=True)[:MAX_GROUPS]
    times = [item.step_time_s for item in reports.values() if item.step_time_s is not None]
    first = min(reports)
    return StepReport(
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


def _plan(cache: RunCache) -> PlanReport | None:
    plan = cache.newest_plan
    if plan is None or cache.view is None or cache.view.number != plan.view:
        return None
    progress = progress_of_plan(cache, plan, attempt_of(cache, plan))
    if progress.stage not in ("planned", "committed"):
        return None
    nodes = _nodes_waiting(cache, progress.waiting)
    return PlanReport(
        number=plan.number,
        state="open" if progress.stage == "planned" else "committed",
        gate=plan.gate,
        attempt=progress.attempt,
        changes=planned_changes(plan.values, plan.previous),
        author=plan.author,
        reason=plan.reason,
        armed=progress.armed,
        applied=progress.applied,
        ranks=progress.ranks,
        waiting=nodes[:MAX_GROUPS],
        waiting_more=max(0, len(nodes) - MAX_GROUPS),
        kind=plan.kind,
        name=plan.name,
        save=saves_first(plan),
    )


def _nodes_waiting(cache: RunCache, waiting: Collection[int]) -> tuple[NodeWaiting, ...]:
    hosts = {item.member.node: item.member.host for item in cache.members.values()}
    nodes, ranks_waiting = cache.view.nodes if cache.view else {}, set(waiting)
    return tuple(
        NodeWaiting(node, hosts.get(node, ""), format_ranks(ranks))
        for node, members in nodes.items()
        if (ranks := [rank for rank in members.ranks if rank in ranks_waiting])
    )
