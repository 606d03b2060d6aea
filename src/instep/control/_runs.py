"""The runs of a namespace, the state of each, and the deletion of one that has ended."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import Literal

from instep.command_kinds import describe
from instep.control._cache import RunCache
from instep.control._read import found_runs, load
from instep.control._report import JsonReport
from instep.control._torchrun import rendezvous_keys
from instep.errors import CommandRefused
from instep.etcd import Client, Compare, DeleteResult, Listing, Op
from instep.protocol.keys import Keys
from instep.tasks import all_of
from instep.text import one_line

MAX_SHOWN = 1000
"""Runs that are summarized."""
_AT_ONCE = 4
_IN_ONE_TXN = 12
"""Runs that one request reads: etcd allows 128 operations."""
_METRICS_READ = 64
_NODES_READ = 64
RunState = Literal["training", "paused", "forming", "running", "ended", "stopped", "closed", "new"]
"""training: the run has a view and live workers. paused: the same, and the ranks wait to be resumed. forming: live
workers but no view yet; or torchrun's agents wait for a round. running: torchrun runs workers, none of which has
joined. ended: all ranks left cleanly. stopped: no worker is alive, and they did not leave cleanly. closed: torchrun has
ended a run that no worker ever joined. new: only written to, never joined."""
_FOLDERS_NAMED = 5


@dataclass(frozen=True, slots=True)
class RunSummary(JsonReport):
    """`step` is the highest step in the latest reports of the first 64 ranks; None while none is known. `round` is that
    of torchrun's agents, None without `--rdzv-backend=etcd3`; `nodes` is its number of nodes, 0 if none is current."""

    name: str
    state: RunState
    live: bool
    world_size: int | None
    view: int | None
    step: int | None
    leader_rank: int | None
    leader_host: str | None
    round: int | None = None
    nodes: int | None = None


@dataclass(frozen=True, slots=True)
class Runs(JsonReport):
    namespace: str
    runs: tuple[RunSummary, ...]
    left_out: int = 0
    """The number of further runs, which were changed longer ago."""


async def runs(client: Client, namespace: str) -> Runs:
    """The runs of the namespace by name; of more than 1000, those that were changed last. Each dozen is read at a
    revision of its own."""
    found = await found_runs(client, namespace)
    newest = sorted(found, key=lambda name: found[name], reverse=True)[:MAX_SHOWN]
    shown = set(newest)
    chosen = [Keys(namespace, name) for name in found if name in shown]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def summaries(some: list[Keys]) -> list[RunSummary]:
        async with slots:
            return await _summaries(client, some)

    groups = [chosen[start : start + _IN_ONE_TXN] for start in range(0, len(chosen), _IN_ONE_TXN)]
    read = await all_of(*(summaries(group) for group in groups))
    return Runs(namespace, tuple(one for group in read for one in group), len(found) - len(chosen))


def state_of(cache: RunCache) -> RunState:
    """The state of a run; needs some of its members, and the rendezvous."""
    state = state_of_workers(cache)
    rendezvous = cache.rendezvous.state(cache.rendezvous.status())
    if cache.live or rendezvous is None:
        return state
    return rendezvous if state == "new" or rendezvous in ("forming", "running") else state


def state_of_workers(cache: RunCache) -> RunState:
    """The same, without torchrun: the state of the workers that have joined."""
    if cache.live and cache.view is not None:
        return "training" if cache.directive.paused_at is None else "paused"
    if cache.live:
        return "forming"
    if cache.view is None:
        return "new"
    return "ended" if cache.ended() else "stopped"


@dataclass(frozen=True, slots=True)
class PausedReport(JsonReport):
    """All ranks wait before `step`, or will when they reach it; `why` says who requested it."""

    step: int
    why: str


@dataclass(frozen=True, slots=True)
class StoppingReport(JsonReport):
    """`step` is the first that is not run, `save_at` the one that is saved, if any; `why` says who requested it."""

    step: int
    save_at: int | None
    why: str


@dataclass(frozen=True, slots=True)
class SavingReport(JsonReport):
    """A checkpoint that is being written and is not committed yet."""

    id: str
    step: int
    rank: int


@dataclass(frozen=True, slots=True)
class WaitingReport(JsonReport):
    """A command for which no plan is open yet."""

    command_id: str
    kind: str
    name: str | None
    what: str
    author: str | None
    reason: str | None
    revision: int


def paused_of(cache: RunCache) -> PausedReport | None:
    directive = cache.directive
    if directive.paused_at is None:
        return None
    return PausedReport(directive.paused_at, one_line(directive.reason or "paused"))


def stopping_of(cache: RunCache) -> StoppingReport | None:
    directive = cache.directive
    if directive.ends_at is None:
        return None
    return StoppingReport(directive.ends_at, directive.save_at, one_line(directive.reason or "stopped"))


def saving_of(cache: RunCache) -> SavingReport | None:
    saving = cache.save_under_way()
    return SavingReport(saving.id, saving.step, saving.rank) if saving is not None and cache.live else None


def waiting_of(cache: RunCache) -> tuple[WaitingReport, ...]:
    """The oldest first: they are carried out in this order."""
    plan = cache.open_plan()
    planned = plan.change_id if plan is not None and plan.kind != "config" else None
    return tuple(
        WaitingReport(
            command_id=pending.id,
            kind=command.kind,
            name=command.name,
            what=describe(command.kind, command.name, save=command.save, node=command.node),
            author=command.author,
            reason=command.reason,
            revision=pending.revision,
        )
        for pending in cache.commands_by_age()
        if pending.id != planned and (command := pending.command) is not None
    )


async def _summaries(client: Client, group: list[Keys]) -> list[RunSummary]:
    ops = [_summary_ops(keys) for keys in group]
    results = iter((await client.txn([], [op for some in ops for op in some])).results)
    summaries = []
    for keys, some in zip(group, ops, strict=True):
        cache = RunCache(keys)
        for part in itertools.islice(results, len(some)):
            if isinstance(part, Listing):
                cache.put_all(part.kvs)
        summaries.append(_summary(cache))
    return summaries


def _summary_ops(keys: Keys) -> list[Op]:
    rendezvous = rendezvous_keys(keys)
    return [
        *map(Op.get, (keys.view, keys.agreed, keys.leader, rendezvous.round, rendezvous.closed)),
        Op.range(keys.left),
        Op.range(keys.members, limit=1),
        Op.range(keys.metrics, limit=_METRICS_READ),
        Op.range(rendezvous.root, limit=1),
        Op.range(rendezvous.nodes, limit=_NODES_READ),
    ]


def _summary(cache: RunCache) -> RunSummary:
    steps = [item.step for item in cache.metrics.values() if item.step is not None]
    leader = cache.leader if cache.live else None
    round_ = cache.rendezvous.current
    return RunSummary(
        name=cache.keys.run,
        state=state_of(cache),
        live=cache.live,
        world_size=cache.view.world_size if cache.view else None,
        view=cache.view.number if cache.view else None,
        step=max(steps, default=None),
        leader_rank=leader.rank if leader else None,
        leader_host=(leader.host or leader.node) if leader else None,
        round=None if cache.rendezvous.empty else cache.rendezvous.status().number,
        nodes=None if cache.rendezvous.empty else len(round_.seats) if round_ else 0,
    )


@dataclass(frozen=True, slots=True)
class Deletable(JsonReport):
    """What `delete` would delete: a run without live processes. `folders` are the first 5 that hold its checkpoints,
    whose files stay."""

    run: str
    state: RunState
    revision: int
    checkpoints: int
    folders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deleted(JsonReport):
    """`keys` is the number of deleted keys."""

    run: str
    revision: int
    keys: int
    checkpoints: int
    folders: tuple[str, ...]


async def deletable(client: Client, keys: Keys) -> Deletable:
    """Raises RunNotFound, and CommandRefused for a run with live processes."""
    cache = await load(client, keys, plans=1, receipts=0, members=True, checkpoints=True, rendezvous=True)
    if cache.live or cache.rendezvous.nodes:
        raise _refused(keys)
    paths = (saved.manifest.path.rpartition("/")[0] for saved in cache.saved.values())
    folders = tuple(dict.fromkeys(paths))[:_FOLDERS_NAMED]
    return Deletable(keys.run, state_of(cache), cache.revision, len(cache.saved), folders)


async def delete(client: Client, keys: Keys) -> Deleted:
    """Delete all keys of a run. The files of its checkpoints stay.

    Nothing is deleted while a worker, an agent or a torchrun of the run is registered: each holds a key on a lease, and
    the transaction compares these. Raises RunNotFound, CommandRefused, and EtcdUnavailable, whose `applied_unknown`
    says that it may have happened: repeat it then.
    """
    found = await deletable(client, keys)
    rendezvous = rendezvous_keys(keys)
    present = (keys.members, keys.election, rendezvous.nodes, rendezvous.election)
    guards = [Compare.absent(prefix, prefix=True) for prefix in present]
    total = 0
    revision = 0
    # The numerous keys of a large run come first, because no single transaction can delete all of them.
    for prefix in (keys.acks, keys.receipts, keys.metrics, keys.plans, keys.root):
        result = await client.txn(guards, [Op.delete(prefix, prefix=True)])
        if not result.succeeded:
            raise _refused(keys)
        revision = result.revision
        total += sum(part.deleted for part in result.results if isinstance(part, DeleteResult))
    return Deleted(keys.run, revision, total, found.checkpoints, found.folders)


def _refused(keys: Keys) -> CommandRefused:
    return CommandRefused(
        f"nothing was deleted: run {keys.run} is live, a worker, agent or torchrun of it is still registered; end it "
        f"with 'instep stop {keys.run}', and wait for the lease of one that was killed (10 s by default)"
    )
