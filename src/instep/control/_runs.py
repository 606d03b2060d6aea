"""The runs of a namespace, one line of facts each."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import Literal

from instep.control._discover import run_names, runs_found
from instep.control._facts import Facts
from instep.control._picture import Picture
from instep.control._rendezvous import rendezvous_keys
from instep.control._text import closest
from instep.errors import RunNotFound
from instep.etcd import Client, Listing, Op
from instep.protocol.keys import Keys
from instep.tasks import all_of

MAX_SHOWN = 1000
"""Runs that a summary is made of."""
_AT_ONCE = 4
_IN_ONE_TXN = 12
"""Runs whose summaries are read by one request: etcd allows 128 operations."""
_METRICS_LOOKED_AT = 64
_NODES_LOOKED_AT = 64
_NAMED = 10

RunState = Literal["training", "paused", "forming", "running", "ended", "stopped", "closed", "new"]
"""training: a view stands and workers live. paused: the same, and the ranks wait to be resumed. forming: workers live,
no view yet; or torchrun's agents wait for a round. running: torchrun runs workers, and none of them has joined. ended:
all ranks left cleanly. stopped: no worker lives, though they did not leave cleanly. closed: torchrun has ended a run
that no worker ever joined. new: only written to, never joined."""


@dataclass(frozen=True, slots=True)
class RunSummary(Facts):
    """`step` is the highest one that the first 64 ranks reported last; None while none is known. `round` is that of
    torchrun's agents, None without `--rdzv-backend=etcd3`, and `nodes` how many are in it, 0 for none now."""

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
class Runs(Facts):
    namespace: str
    runs: tuple[RunSummary, ...]
    left_out: int = 0
    """Runs that are there beside these, which were changed longer ago."""


async def runs(client: Client, namespace: str) -> Runs:
    """Every run of the namespace by name; of more than 1000 those that were changed last. Each dozen of them at a
    revision of its own."""
    found = await runs_found(client, namespace)
    newest = sorted(found, key=lambda name: found[name], reverse=True)[:MAX_SHOWN]
    shown = set(newest)
    chosen = [Keys(namespace, name) for name in found if name in shown]
    slots = asyncio.Semaphore(_AT_ONCE)

    async def summaries(some: list[Keys]) -> list[RunSummary]:
        async with slots:
            return await _summaries(client, some)

    groups = [chosen[start : start + _IN_ONE_TXN] for start in range(0, len(chosen), _IN_ONE_TXN)]
    told = await all_of(*(summaries(group) for group in groups))
    return Runs(namespace, tuple(one for group in told for one in group), len(found) - len(chosen))


async def require_run(client: Client, keys: Keys) -> None:
    """Raises RunNotFound, naming the runs that are there, when the run has no key at all."""
    if not (await client.range(keys.root, limit=1, keys_only=True)).kvs:
        raise run_not_found(keys, await run_names(client, keys.namespace))


def run_not_found(keys: Keys, names: tuple[str, ...], *, cure: str = "") -> RunNotFound:
    """One sentence: what is not there, what may have been meant, and what is there."""
    close = closest(keys.run, names)
    if close is not None:
        hint = f": did you mean {close!r}?"
    elif names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        hint = f": there are {', '.join(names[:_NAMED])}{more}."
    else:
        hint = ": no run is there yet."
    return RunNotFound(f"No run {keys.run!r} is in {keys.namespace}{hint}{cure}")


def state_of(picture: Picture) -> RunState:
    """In one word how the run is; needs its members, or some of them, to have been read, and the rendezvous."""
    state = state_of_workers(picture)
    rendezvous = picture.rendezvous.state(picture.rendezvous.standing())
    if picture.live or rendezvous is None:
        return state
    return rendezvous if state == "new" or rendezvous in ("forming", "running") else state


def state_of_workers(picture: Picture) -> RunState:
    """The same, whatever torchrun does: of workers that have joined."""
    if picture.live and picture.view is not None:
        return "training" if picture.course.paused_at is None else "paused"
    if picture.live:
        return "forming"
    if picture.view is None:
        return "new"
    return "ended" if picture.ended() else "stopped"


async def _summaries(client: Client, group: list[Keys]) -> list[RunSummary]:
    ops = [_summary_ops(keys) for keys in group]
    results = iter((await client.txn([], [op for some in ops for op in some])).results)
    summaries = []
    for keys, some in zip(group, ops, strict=True):
        picture = Picture(keys)
        for part in itertools.islice(results, len(some)):
            if isinstance(part, Listing):
                picture.put_all(part.kvs)
        summaries.append(_summary(picture))
    return summaries


def _summary_ops(keys: Keys) -> list[Op]:
    rendezvous = rendezvous_keys(keys)
    return [
        *map(Op.get, (keys.view, keys.agreed, keys.leader, rendezvous.round, rendezvous.closed)),
        Op.range(keys.left),
        Op.range(keys.members, limit=1),
        Op.range(keys.metrics, limit=_METRICS_LOOKED_AT),
        Op.range(rendezvous.root, limit=1),
        Op.range(rendezvous.nodes, limit=_NODES_LOOKED_AT),
    ]


def _summary(picture: Picture) -> RunSummary:
    steps = [item.step for item in picture.metrics.values() if item.step is not None]
    leader = picture.leader if picture.live else None
    round_ = picture.rendezvous.current
    return RunSummary(
        name=picture.keys.run,
        state=state_of(picture),
        live=picture.live,
        world_size=picture.view.world_size if picture.view else None,
        view=picture.view.number if picture.view else None,
        step=max(steps, default=None),
        leader_rank=leader.rank if leader else None,
        leader_host=(leader.host or leader.node) if leader else None,
        round=None if picture.rendezvous.empty else picture.rendezvous.standing().number,
        nodes=None if picture.rendezvous.empty else len(round_.seats) if round_ else 0,
    )
