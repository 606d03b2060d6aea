"""Ranks get SIGTERM at any moment: all save in one step and leave, and the run continues after that step.

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
from chaos.drills import rounds
from chaos.drills.testbed import WORLD_SIZE, Failed, Testbed, testbed
from chaos.harness.processes import send
from chaos.harness.ranks import Rank
from chaos.options import DrillOptions, parse_drill

NAME: Final = "sigterm"
ROUNDS: Final = 100
LEAVING_S: Final = 30.0
"""What a launcher gives, and Instep expects, from SIGTERM to SIGKILL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Which ranks get SIGTERM in a round, and when."""

    moment: Literal["at the beginning", "writing", "any time"]
    saves: int
    """Of this life, the save in which it comes."""
    part: float
    """Of the time that such a moment lasts."""
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
    """One run that gets SIGTERM and is restarted in every round."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self._ranks = testbed.ranks
        self._longest_s = 0.0

    async def begin(self) -> None:
        """Every round starts the ranks itself."""

    async def round(self, number: int) -> str:
        notice = Notice.of(self._testbed.options, number)
        await self._testbed.start(background=notice.background)
        await self._testbed.all_said("joined")
        await self._come(notice)
        said = await self._tell(notice)
        began = monotonic()
        await self._testbed.until(self._all_gone, "the ranks to leave", timeout_s=LEAVING_S, dead=True)
        took_s = monotonic() - began
        self._longest_s = max(self._longest_s, took_s)
        last = await self._left()
        await self._went_on()
        return f"{said}; all left after step {last}, {took_s:.2f} s later"

    async def finish(self) -> str:
        registry = await self._testbed.catch_up()
        return f"{len(registry.committed)} checkpoints committed; leaving took {self._longest_s:.2f} s at most"

    # -- the notice ---------------------------------------------------------------------------------------------------

    async def _come(self, notice: Notice) -> None:
        """Waits for the moment."""
        if notice.moment == "at the beginning":
            await asyncio.sleep(0.3 * notice.part)
            return
        what = f"save {notice.saves} of this life"
        step, at = (await self._testbed.until(lambda: self._saves()[notice.saves - 1 :], what))[0]
        length_s = content.length_s(self._testbed.options.seed, step)
        after_s = notice.part * (length_s if notice.moment == "writing" else 2.0)
        await asyncio.sleep(max(0.0, at + after_s - monotonic()))

    def _saves(self) -> list[tuple[int, float]]:
        """Step and time of each that was begun in this life, in order."""
        begun = [(int(said["step"]), float(said["at"])) for rank in self._ranks.all for said in rank.said("opened")]
        return sorted(begun, key=lambda item: item[1])

    async def _tell(self, notice: Notice) -> str:
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

    def _all_gone(self) -> bool:
        return all(rank.code is not None for rank in self._ranks.all)

    async def _left(self) -> int:
        """The last step, of all ranks, committed."""
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
            raise Failed(f"the last step was {last}, and {registry.newest} is the newest checkpoint")
        self._testbed.check_whole(registry.committed[registry.newest])
        return last

    async def _went_on(self) -> None:
        """This life began where the one before had ended, on all ranks."""
        registry = self._testbed.registry
        lives = sorted(number for number, view in registry.views.items() if view.fresh)
        newest = registry.views[lives[-1]].newest
        expected = registry.committed[newest].step + 1 if newest is not None else 0
        began = [said["next"] for said in await self._testbed.all_said("restored", dead=True)]
        if set(began) != {expected}:
            raise Failed(f"the ranks went on with {began}, and {newest} was the newest checkpoint")


def main(arguments: Sequence[str]) -> int:
    options = parse_drill(NAME, __doc__ or "", arguments, rounds=ROUNDS)
    return asyncio.run(rounds.perform(options, lambda folder: testbed(options, folder), Drill))
