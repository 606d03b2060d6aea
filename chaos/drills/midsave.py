"""The saver is killed during a save, all other ranks after it, and the run is restarted.

Every round: all ranks resume from the newest committed checkpoint, which is complete and has the content of its step.
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
from chaos.drills.rounds import run_drill
from chaos.drills.testbed import Testbed, testbed
from chaos.harness.processes import send
from chaos.harness.ranks import Rank
from chaos.options import DrillOptions, Failed

NAME: Final = "midsave"
ROUNDS: Final = 20
WHOLE_S: Final = 0.03
"""From the last file to the commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Which processes are killed in a round, when, and what happens to the other ranks."""

    saves: int
    """The number of the save, since the start of the processes, during which the saver is killed."""
    moment: Literal["writing", "about to commit", "any time"]
    part: float
    """When within that moment: 0 to 1."""
    victims: Literal["worker", "worker and agent", "worker, agent and supervisor", "node"]
    order: int
    rest: Literal["killed", "SIGTERM"]
    rest_s: float
    """How long the others continue to run."""
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
        self._verified: set[str] = set()
        self._background = False

    async def begin(self) -> None:
        await self._testbed.start()
        await self._check_restored()

    async def round(self, number: int) -> str:
        kill = Kill.of(self._testbed.options, number)
        said = await self._kill_saver(kill)
        await self._end_others(kill)
        await self._check_registered()
        self._background = kill.background
        await self._testbed.start(background=kill.background)
        return f"{said}; {await self._check_restored()}"

    async def finish(self) -> str:
        """The ranks leave, and all registered checkpoints are still there."""
        await self._testbed.finish()
        self._verified.clear()
        await self._check_registered()
        registry = self._testbed.registry
        kept = {Path(manifest.path).name for manifest in registry.registered.values()}
        others = [path for path in self._testbed.saves.iterdir() if path.name not in kept]
        return (
            f"{len(registry.committed)} checkpoints committed, {len(kept)} kept, all complete; "
            f"{len(others)} other directories are left"
        )

    # -- the kill -----------------------------------------------------------------------------------------------------

    async def _kill_saver(self, kill: Kill) -> str:
        """Waits for the save and for its moment."""
        what = f"save {kill.saves} of these processes"
        victim, save = (await self._testbed.until(lambda: self._testbed.begun_saves()[kill.saves - 1 :], what))[0]
        step, agents = int(save["step"]), victim.node.agents()
        length_s = content.length_s(self._testbed.options.seed, step)
        if kill.moment == "about to commit":
            await self._testbed.until(lambda: self._testbed.is_whole(step), f"the last file of step {step}")
            await asyncio.sleep(WHOLE_S * kill.part)
        else:
            after_s = length_s * kill.part * (1.3 if kill.moment == "any time" else 1.0)
            await asyncio.sleep(max(0.0, save["at"] + after_s - monotonic()))
        send(self._pids(victim, agents, kill), signal.SIGKILL)
        passed_ms, length_ms = (monotonic() - save["at"]) * 1e3, length_s * 1e3
        beside = " in the background" if self._background else ""
        return (
            f"rank {victim.number} saves step {step} in {length_ms:.0f} ms{beside}, "
            f"killed after {passed_ms:.0f} ms ({kill.victims})"
        )

    def _pids(self, victim: Rank, agents: Sequence[int], kill: Kill) -> list[int]:
        pids = [victim.pid]
        if kill.victims == "node":
            pids = [rank.pid for rank in self._ranks.on(victim.node)]
        if kill.victims == "worker and agent":
            pids += agents[-1:]
        elif kill.victims != "worker":
            pids += agents
        random.Random(kill.order).shuffle(pids)
        return pids

    async def _end_others(self, kill: Kill) -> None:
        """Ends the other ranks as torchrun does: SIGTERM, then SIGKILL."""
        if kill.rest == "SIGTERM":
            self._ranks.signal(signal.SIGTERM)
        await asyncio.sleep(kill.rest_s)
        await self._testbed.kill_all()

    # -- what must hold -----------------------------------------------------------------------------------------------

    async def _check_registered(self) -> None:
        """While no rank runs: registered checkpoints are on the disk, and those that ranks know of are registered."""
        registry = await self._testbed.catch_up()
        for checkpoint_id, manifest in registry.registered.items():
            if checkpoint_id not in self._verified or checkpoint_id == registry.newest:
                self._testbed.check_whole(manifest)
                self._verified.add(checkpoint_id)
        steps = {manifest.step for manifest in registry.committed.values()}
        for rank in self._ranks.all:
            lost = [said["step"] for said in rank.said("saved", known=True) if said["step"] not in steps]
            if lost and not self._background:
                raise Failed(f"{rank} received that steps {lost} are saved, but no such checkpoint was committed")

    async def _check_restored(self) -> str:
        """All ranks have loaded the checkpoint that was the newest when their view was formed."""
        said = await self._testbed.all_said("restored")
        views = {joined["view"] for joined in await self._testbed.all_said("joined")}
        registry = await self._testbed.catch_up()
        if len(views) != 1 or not registry.views[min(views)].fresh:
            raise Failed(f"the ranks did not start together: views {views}")
        newest = registry.views[min(views)].newest
        step = registry.committed[newest].step if newest is not None else -1
        held = content.digest(self._testbed.content(step)) if newest is not None else ""
        for rank, loaded in zip(self._ranks.all, said, strict=True):
            if (loaded["next"], loaded["digest"]) != (step + 1, held):
                raise Failed(f"{rank} has loaded {loaded}, but {newest} with {held} is the newest")
            if not self._testbed.options.torch and loaded["id"] != newest:
                raise Failed(f"{rank} has loaded {loaded['id']}, but {newest} is the newest")
        return f"all resume from {newest or 'the beginning'}"


def main(arguments: Sequence[str]) -> int:
    return run_drill(NAME, __doc__, ROUNDS, arguments, testbed, Drill)
