"""Reading what etcd keeps of a run's past: its plans, what its views began with, its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from instep.control._load import load
from instep.control._picture import Picture
from instep.control._runs import require_run
from instep.errors import Compacted, ConfigError
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.protocol.timeline import Timeline
from instep.protocol.transactions import HISTORY_PLANS, STARTS_KEPT
from instep.schedule import Schedule
from instep.text import one_line

_TRIES = 3


@dataclass(frozen=True, slots=True)
class Past:
    """A run now, and what is known of how it came there."""

    picture: Picture
    timeline: Timeline

    def check_plan(self, number: int) -> None:
        """Raises ConfigError, in one sentence, for a plan that no value was ever changed or kept by."""
        timeline, run = self.timeline, self.picture.keys.run
        if number not in timeline.plans:
            newest = max(timeline.plans, default=0)
            if not newest:
                raise ConfigError(f"run {run} has no plan {number}: nothing was changed yet")
            if not 1 <= number <= newest:
                raise ConfigError(f"run {run} has no plan {number}: its newest is {newest}")
            raise ConfigError(f"plan {number} of run {run} is not kept any more: etcd keeps the last {HISTORY_PLANS}")
        decision = timeline.decisions.get(number)
        if decision is None:
            raise ConfigError(f"plan {number} of run {run} is not decided yet: it has changed nothing")
        if not decision.commit:
            why = one_line(decision.reason or "no reason was given")
            raise ConfigError(f"plan {number} of run {run} was aborted ({why}): it changed nothing")


async def load_past(client: Client, keys: Keys) -> Past:
    """All of it at one revision. Raises RunNotFound."""
    for attempt in range(_TRIES):
        try:
            return await _load_past(client, keys)
        except Compacted:
            if attempt == _TRIES - 1:
                raise
    raise AssertionError("the last try returns or raises")


async def schedule(client: Client, keys: Keys) -> Schedule:
    """What a run was trained with, by step, as far as it has come: steps that were run again after a return to a
    checkpoint count as they were run the last time. Raises RunNotFound, or ConfigError when too much is forgotten.
    """
    past = await load_past(client, keys)
    return past.timeline.schedule(keys.run)


async def _load_past(client: Client, keys: Keys) -> Past:
    picture = await load(
        client, keys, plans=HISTORY_PLANS + 1, receipts=0, members=True, checkpoints=True, starts=STARTS_KEPT
    )
    if picture.empty:
        await require_run(client, keys)
    timeline = Timeline(
        starts=picture.starts,
        first_steps=picture.first_steps,
        plans=picture.plans,
        decisions=picture.decisions,
        manifests={name: saved.manifest for name, saved in picture.saved.items()},
        view=picture.view,
    )
    return Past(picture, timeline)
