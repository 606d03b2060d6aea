"""Ranks get SIGTERM at a random moment: all save in the same step and leave, and the run continues after that step.

Every round: all ranks end before the same step with exit code 0, and a checkpoint of the step before is committed and
whole; the next round resumes from it.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final, Literal, Self

from chaos import content
from chaos.drills.rounds import run_drill
from chaos.drills.testbed import WORLD_SIZE, Testbed, testbed
from chaos.harness.processes import send
from chaos.harness.ranks import Rank
from chaos.options import DrillOptions, Failed

NAME: Final = "sigterm"
ROUNDS: Final = 20
LEAVING_S: Final = 30.0
"""From SIGTERM to SIGKILL, as launchers have it and Instep assumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Which ranks get SIGTERM in a round, and when."""

    moment: Literal["at the beginning", "writing", "any time"]
    saves: int
    """The number of the save, since the start of the processes, at which the signal is sent."""
    part: float
    """When within that moment: 0 to 1."""
    rank: int
    target: Literal["rank", "node", "node and agents", "all", "one after the other"]
    order: int
    background: bool

    @classmethod
    def of(cls, options: DrillOptions, number: int) -> Self:
        dice = random.Random(f"{options.seed} {NAME} {number}")
        return cls(
            moment=dice.choices(("at the beginning", "writing", "any time"), (1, 4, 4))[0],
            saves=dice.randint(1, 2),
            part=dice.random(),
            rank=dice.randrange(WORLD_SIZE),
            target=dice.choices(("rank", "node", "node and agents", "all", "one after the other"), (5, 2, 2, 2, 1))[0],
            order=dice.randrange(2**16),
            background=options.torch and dice.random() < 0.25,
        )


class Drill:
    """One run, which gets SIGTERM and is restarted in every round."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self._ranks = testbed.ranks
        self._longest_s = 0.0

    async def begin(self) -> None:
        """Nothing: each round starts the ranks."""

    async def round(self, number: int) -> str:
        notice = Notice.of(self._testbed.options, number)
        await self._testbed.start(background=notice.background)
        await self._testbed.all_said("joined")
        await self._wait_for_moment(notice)
        said = await self._signal(notice)
        began = monotonic()
        await self._testbed.until(self._testbed.all_gone, "the ranks to leave", timeout_s=LEAVING_S, dead=True)
        took_s = monotonic() - began
        self._longest_s = max(self._longest_s, took_s)
        last = await self._check_left()
        await self._check_resumed()
        return f"{said}; all left after step {last}, {took_s:.2f} s later"

    async def finish(self) -> str:
        registry = await self._testbed.catch_up()
        return f"{len(registry.committed)} checkpoints committed; leaving took {self._longest_s:.2f} s at most"

    # -- the notice ---------------------------------------------------------------------------------------------------

    async def _wait_for_moment(self, notice: Notice) -> None:
        """Waits for the moment."""
        if notice.moment == "at the beginning":
            await asyncio.sleep(0.3 * notice.part)
            return
        what = f"save {notice.saves} of these processes"
        _, save = (await self._testbed.until(lambda: self._testbed.begun_saves()[notice.saves - 1 :], what))[0]
        length_s = content.length_s(self._testbed.options.seed, int(save["step"]))
        after_s = notice.part * (length_s if notice.moment == "writing" else 2.0)
        await asyncio.sleep(max(0.0, save["at"] + after_s - monotonic()))

    async def _signal(self, notice: Notice) -> str:
        rank = self._ranks.all[notice.rank]
        chosen = {"rank": [rank], "node": self._ranks.on(rank.node)}.get(notice.target, self._ranks.all)
        pids = [item.pid for item in chosen]
        if notice.target == "node and agents":
            pids = [item.pid for item in self._ranks.on(rank.node)] + rank.node.agents()
        dice = random.Random(notice.order)
        dice.shuffle(pids)
        for pid in pids:
            send([pid], signal.SIGTERM)
            if notice.target == "one after the other":
                await asyncio.sleep(dice.uniform(0, 0.05))
        beside = " in the background" if notice.background else ""
        return f"{notice.moment}{beside}, SIGTERM to {notice.target} ({rank})"

    # -- what must hold -----------------------------------------------------------------------------------------------

    async def _check_left(self) -> int:
        """Returns the last step, which all ranks share and whose checkpoint is committed."""
        codes = [rank.code for rank in self._ranks.all]
        if any(codes):
            bad: Rank = next(rank for rank in self._ranks.all if rank.code)
            raise Failed(f"the ranks ended with {codes}; {bad}:\n{bad.log_tail()}")
        stops = [int(said["step"]) for said in await self._testbed.all_said("stopped", dead=True)]
        if len(set(stops)) != 1:
            raise Failed(f"the ranks ended before different steps: {stops}")
        last = stops[0] - 1
        registry = await self._testbed.catch_up()
        if registry.newest is None or registry.committed[registry.newest].step != last:
            raise Failed(f"the last step was {last}, but {registry.newest} is the newest checkpoint")
        self._testbed.check_whole(registry.committed[registry.newest])
        return last

    async def _check_resumed(self) -> None:
        """All ranks began where the processes before them had ended."""
        registry = self._testbed.registry
        starts = sorted(number for number, view in registry.views.items() if view.fresh)
        newest = registry.views[starts[-1]].newest
        expected = registry.committed[newest].step + 1 if newest is not None else 0
        began = [said["next"] for said in await self._testbed.all_said("restored", dead=True)]
        if set(began) != {expected}:
            raise Failed(f"the ranks resumed at {began}, but {newest} was the newest checkpoint")


def main(arguments: Sequence[str]) -> int:
    return run_drill(NAME, __doc__, ROUNDS, arguments, testbed, Drill)
