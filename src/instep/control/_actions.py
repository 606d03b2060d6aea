"""The actions that a run's training script declares."""

from __future__ import annotations

from dataclasses import dataclass

from instep.control._command import why_not_running
from instep.control._facts import Facts
from instep.control._load import load
from instep.control._orders import declared
from instep.control._runs import require_run
from instep.errors import NotRunning
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.records import format_ranks


@dataclass(frozen=True, slots=True)
class Action(Facts):
    """`ranks` that have declared it, as ranges; it can be asked for when they are all (`everywhere`)."""

    name: str
    ranks: str
    everywhere: bool


@dataclass(frozen=True, slots=True)
class Actions(Facts):
    run: str
    revision: int
    actions: tuple[Action, ...]
    """By name; of each rank the first 64."""


async def actions(client: Client, keys: Keys) -> Actions:
    """What `send(..., "action", name=...)` can ask for, as the ranks said last, which may be seconds old.

    Raises RunNotFound and NotRunning.
    """
    picture = await load(client, keys, plans=1, receipts=0, members=True, metrics=True)
    if picture.empty:
        await require_run(client, keys)
    why = why_not_running(picture)
    if why is not None:
        raise NotRunning(why)
    everyone = {rank for rank, item in picture.metrics.items() if item.actions is not None}
    found = tuple(
        Action(name, format_ranks(ranks), everyone <= ranks and bool(ranks))
        for name, ranks in declared(picture).items()
    )
    return Actions(keys.run, picture.revision, found)
