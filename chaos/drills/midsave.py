"""The rank that saves is killed in the middle of it, all others after it, and the run is restarted.

Every round: all ranks resume from the newest committed checkpoint, which is whole and holds what was saved of its step.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final, Literal, Self

from chaos import content
from chaos.drills import rounds
from chaos.drills.testbed import Failed, Testbed, testbed
from chaos.harness.processes import send
from chaos.harness.ranks import Rank
from chaos.options import DrillOptions, parse_drill

NAME: Final = "midsave"
ROUNDS: Final = 100
WHOLE_S: Final = 0.03
"""The commit follows so soon upon the last file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """Which rank is killed in a round, when, and what happens to the others."""

    saves: int
    """Of this life, the save in which it comes."""
    moment: Literal["writing", "about to commit", "any time"]
    part: float
    """Of the time that such a moment lasts."""
    victims: Literal["worker", "worker and agent", "worker, agent and supervisor", "node"]
    order: int
    rest: Literal["killed", "SIGTERM"]
    rest_s: float
    """How long the others run on."""
    background: bool

    @classmethod
    def of(cls, options: DrillOptions, number: int) -> Self:
        dice = random.Random(f"{options.seed} {NAME} {number}")
        return cls(
            saves=dice.randint(1, 3),
            moment=dice.choices(("writing", "about to commit", "any time"), (5, 3, 2))[0],
            part=dice.random(),
            victims=dice.choices(("worker", "worker and agent", "worker, agent and supervisor", "node"), (4, 2, 2, 3))[
                0
            ],
            order=dice.randrange(2**16),
            rest=dice.choices(("killed", "SIGTERM"), (3, 1))[0],
            rest_s=dice.choice((0.0, dice.uniform(0, 0.3), dice.uniform(0.3, 2.5))),
            background=options.torch and dice.random() < 0.25,
        )


class Drill:
    """One run, killed and restarted in every round."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self._ranks = testbed.ranks
        self._looked_at: set[str] = set()
        self._background = False

    async def begin(self) -> None:
        await self._testbed.start()
        await self._restored()

    async def round(self, number: int) -> str:
        blow = Blow.of(self._testbed.options, number)
        said = await self._strike(blow)
        await self._outlive(blow)
        await self._all_there()
        self._background = blow.background
        await self._testbed.start(background=blow.background)
        return f"{said}; {await self._restored()}"

    async def finish(self) -> str:
        """The ranks leave in order, and all that was committed is still there."""
        await self._testbed.finish()
        self._looked_at.clear()
        await self._all_there()
        registry = self._testbed.registry
        kept = {Path(manifest.path).name for manifest in registry.registered.values()}
        others = [path for path in self._testbed.saves.iterdir() if path.name not in kept]
        return (
            f"{len(registry.committed)} checkpoints committed, {len(kept)} kept, all of them whole; "
            f"{len(others)} directories of no checkpoint are left"
        )

    # -- the blow -----------------------------------------------------------------------------------------------------

    async def _strike(self, blow: Blow) -> str:
        """Waits for the save and for its moment."""
        what = f"save {blow.saves} of this life"
        victim, save = (await self._testbed.until(lambda: self._testbed.begun_saves()[blow.saves - 1 :], what))[0]
        step, agents = int(save["step"]), victim.node.agents()
        length_s = content.length_s(self._testbed.options.seed, step)
        if blow.moment == "about to commit":
            await self._testbed.until(lambda: self._testbed.is_whole(step), f"the last file of step {step}")
            await asyncio.sleep(WHOLE_S * blow.part)
        else:
            after_s = length_s * blow.part * (1.3 if blow.moment == "any time" else 1.0)
            await asyncio.sleep(max(0.0, save["at"] + after_s - monotonic()))
        send(self._pids(victim, agents, blow), signal.SIGKILL)
        passed_ms, length_ms = (monotonic() - save["at"]) * 1e3, length_s * 1e3
        beside = " in the background" if self._background else ""
        return (
            f"rank {victim.number} saves step {step} in {length_ms:.0f} ms{beside}, "
            f"killed after {passed_ms:.0f} ms ({blow.victims})"
        )

    def _pids(self, victim: Rank, agents: Sequence[int], blow: Blow) -> list[int]:
        pids = [victim.pid]
        if blow.victims == "node":
            pids = [rank.pid for rank in self._ranks.on(victim.node)]
        if blow.victims == "worker and agent":
            pids += agents[-1:]
        elif blow.victims != "worker":
            pids += agents
        random.Random(blow.order).shuffle(pids)
        return pids

    async def _outlive(self, blow: Blow) -> None:
        """What torchrun does with the rest: it tells them to end, and kills them when they have not."""
        if blow.rest == "SIGTERM":
            self._ranks.signal(signal.SIGTERM)
        await asyncio.sleep(blow.rest_s)
        await self._testbed.kill_all()

    # -- what must hold -----------------------------------------------------------------------------------------------

    async def _all_there(self) -> None:
        """While no rank lives: what is in the registry is on the disk, and what ranks know of is in the registry."""
        registry = await self._testbed.catch_up()
        for checkpoint_id, manifest in registry.registered.items():
            if checkpoint_id not in self._looked_at or checkpoint_id == registry.newest:
                self._testbed.check_whole(manifest)
                self._looked_at.add(checkpoint_id)
        steps = {manifest.step for manifest in registry.committed.values()}
        for rank in self._ranks.all:
            lost = [said["step"] for said in rank.said("saved", known=True) if said["step"] not in steps]
            if lost and not self._background:
                raise Failed(f"{rank} received that steps {lost} are saved, and no such checkpoint was ever committed")

    async def _restored(self) -> str:
        """All ranks have loaded what was the newest when their view was formed."""
        said = await self._testbed.all_said("restored")
        views = {joined["view"] for joined in await self._testbed.all_said("joined")}
        registry = await self._testbed.catch_up()
        if len(views) != 1 or not registry.views[min(views)].fresh:
            raise Failed(f"the ranks have not begun together: views {views}")
        newest = registry.views[min(views)].newest
        step = registry.committed[newest].step if newest is not None else -1
        held = content.digest(self._testbed.content(step)) if newest is not None else ""
        for rank, loaded in zip(self._ranks.all, said, strict=True):
            if (loaded["next"], loaded["digest"]) != (step + 1, held):
                raise Failed(f"{rank} has loaded {loaded}, and {newest} with {held} is the newest")
            if not self._testbed.options.torch and loaded["id"] != newest:
                raise Failed(f"{rank} has loaded {loaded['id']}, and {newest} is the newest")
        return f"all resume from {newest or 'the beginning'}"


def main(arguments: Sequence[str]) -> int:
    options = parse_drill(NAME, __doc__ or "", arguments, rounds=ROUNDS)
    return asyncio.run(rounds.perform(options, lambda folder: testbed(options, folder), Drill))
