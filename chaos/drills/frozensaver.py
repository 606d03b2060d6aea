"""The rank that saves and its agent are stopped in the middle of it, beyond their lease, and continued.

Every round: another rank leads meanwhile, what the stopped one commits late is refused, its step has one committed
checkpoint at most, and what it left on the disk is cleaned away by a newer leader.
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
from chaos.drills.testbed import TTL_S, Failed, Testbed, testbed
from chaos.harness.processes import send
from chaos.harness.ranks import Rank
from chaos.harness.records import Record
from chaos.options import DrillOptions, parse_drill

NAME: Final = "frozensaver"
ROUNDS: Final = 20
REPLACED_S: Final = 11.0
"""The other rank of the node kills a stopped agent after some 10 s and starts another one."""
WHOLE_S: Final = 0.005
SUCCESSION_S: Final = 15.0
REFUSAL_S: Final = 30.0
CLEANED_S: Final = 30.0
MOST_IN_TIME: Final = 5
LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """Which rank is stopped in a round, when, and for how long."""

    saves: int
    """After the round before, the save in which it comes."""
    moment: Literal["writing", "about to commit"]
    part: float
    victims: Literal["worker, agent and supervisor", "node"]
    order: int
    for_s: float
    gap_s: float
    """Between one process and the next, when they are continued."""

    @classmethod
    def of(cls, options: DrillOptions, number: int, attempt: int) -> Self:
        dice = random.Random(f"{options.seed} {NAME} {number} {attempt}")
        return cls(
            saves=dice.randint(1, 2),
            moment=dice.choices(("writing", "about to commit"), (4, 1))[0],
            part=dice.random(),
            victims=dice.choices(("worker, agent and supervisor", "node"), (3, 1))[0],
            order=dice.randrange(2**16),
            for_s=dice.choices((TTL_S + dice.uniform(0.3, 2.0), REPLACED_S + dice.uniform(0, 2.0)), (6, 1))[0],
            gap_s=dice.choice((0.0, dice.uniform(0, 0.8))),
        )


@dataclass(slots=True)
class Stopped:
    """What a round is about."""

    rank: Rank
    step: int
    token: int
    pids: list[int]
    at: float
    in_time: bool = False
    """Its commit was made before it was stopped."""

    @property
    def id(self) -> str:
        return f"{self.step}-{self.token}"


class Drill:
    """One run that continues through all rounds."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self._ranks = testbed.ranks
        self._in_time = 0

    async def begin(self) -> None:
        await self._testbed.start()
        await self._testbed.all_said("restored")

    async def round(self, number: int) -> str:
        """One whose commit was made before all of them stood still does not count: another follows."""
        said: list[str] = []
        while len(said) <= MOST_IN_TIME:
            in_time = self._in_time
            said.append(await self._try(Freeze.of(self._testbed.options, number, len(said))))
            if self._in_time == in_time:
                return "; and then ".join(said)
        raise Failed(f"{MOST_IN_TIME} savers in a row had committed before they were stopped")

    async def _try(self, freeze: Freeze) -> str:
        stopped = await self._stop(freeze)
        try:
            successor = await self._succeeded(stopped, freeze)
        finally:
            await self._resume(stopped, freeze)
        outcome = await self._refused(stopped)
        left = await self._cleaned(stopped)
        return (
            f"rank {stopped.rank.number} stopped in its save of step {stopped.step}, {freeze.moment} "
            f"({freeze.victims}), {monotonic() - stopped.at:.1f} s; rank {successor} leads; {outcome}; {left}"
        )

    async def finish(self) -> str:
        await self._testbed.finish()
        registry = await self._testbed.catch_up()
        for manifest in registry.registered.values():
            self._testbed.check_whole(manifest)
        late = f"{self._in_time} commits were made just before their saver was stopped, all late ones refused"
        return f"{len(registry.committed)} checkpoints committed, no step twice; {late}"

    # -- the fault ----------------------------------------------------------------------------------------------------

    async def _stop(self, freeze: Freeze) -> Stopped:
        before = len(self._testbed.begun_saves())
        what = "another save to begin"
        rank, save = (
            await self._testbed.until(lambda: self._testbed.begun_saves()[before + freeze.saves - 1 :], what)
        )[0]
        step = int(save["step"])
        pids = [rank.pid, *rank.node.agents()]
        if freeze.victims == "node":
            pids += [other.pid for other in self._ranks.on(rank.node) if other is not rank]
        random.Random(freeze.order).shuffle(pids)
        if freeze.moment == "about to commit":
            await self._testbed.until(lambda: self._testbed.is_whole(step), f"the last file of step {step}")
            await asyncio.sleep(WHOLE_S * freeze.part)
        else:
            length_s = content.length_s(self._testbed.options.seed, step)
            await asyncio.sleep(max(0.0, save["at"] + 0.8 * length_s * freeze.part - monotonic()))
        send(pids, signal.SIGSTOP)
        registry = await self._testbed.catch_up()
        assert registry.leader is not None
        stopped = Stopped(rank, step, registry.leader.token, pids, monotonic())
        stopped.in_time = stopped.id in registry.committed
        self._in_time += stopped.in_time
        return stopped

    async def _resume(self, stopped: Stopped, freeze: Freeze) -> None:
        random.Random(freeze.order + 1).shuffle(stopped.pids)
        for pid in stopped.pids:
            send([pid], signal.SIGCONT)
            await asyncio.sleep(freeze.gap_s)

    # -- what must hold -----------------------------------------------------------------------------------------------

    async def _succeeded(self, stopped: Stopped, freeze: Freeze) -> int:
        """Another leads while the stopped ones are stopped; where the ranks wait for the save, it saves the step."""
        deadline = stopped.at + max(SUCCESSION_S, freeze.for_s)
        while True:
            registry = await self._testbed.catch_up()
            leader = registry.leader
            assert leader is not None
            succeeded = leader.token > stopped.token and leader.rank != stopped.rank.number
            if succeeded and self._testbed.options.torch:
                succeeded = any(manifest.step == stopped.step for manifest in registry.committed.values())
            if succeeded and monotonic() >= stopped.at + freeze.for_s:
                return leader.rank
            if monotonic() > deadline:
                raise Failed(f"{stopped} was stopped for {monotonic() - stopped.at:.1f} s and no other rank took over")
            await asyncio.sleep(LOOK_S)

    async def _refused(self, stopped: Stopped) -> str:
        """The saver learns of it, if only when it has found its agent again, and nothing of it is in the registry."""
        rank, step = stopped.rank, stopped.step
        what = f"{rank} to hear what became of its save of step {step}"
        await self._testbed.until(lambda: _outcome(rank, step), what, timeout_s=REFUSAL_S)
        event, said = _outcome(rank, step)[0]
        if stopped.in_time:
            return "committed before"
        fate = await self._testbed.until(lambda: _fate(stopped), what, timeout_s=REFUSAL_S)
        registry = await self._testbed.catch_up()
        if stopped.id in registry.committed:
            raise Failed(f"{stopped}: its late commit was made")
        waited = _warned(stopped, f"checkpoint {stopped.id} is not committed yet")
        expected = ("saved", True) if self._testbed.options.torch else ("fenced", None)
        if (event, said.get("known")) != (("saved", False) if waited else expected):
            raise Failed(f"{stopped} has come to {event} {said}, and not to {expected}")
        return f"{fate}, heard of later" if waited else fate

    async def _cleaned(self, stopped: Stopped) -> str:
        """Once a newer leader has made another checkpoint. A saver of one's own cleans for itself."""
        name = f"step-{stopped.step}-{stopped.token}"
        if stopped.in_time:
            return "kept"
        if not self._testbed.options.torch:
            if name not in self._testbed.attempts(stopped.step):
                raise Failed(f"{stopped}: {name} was deleted")
            return "left to its owner"
        deadline = monotonic() + CLEANED_S
        while not await self._saved_since(stopped):
            if monotonic() > deadline:
                raise Failed(f"{stopped}: no newer leader has saved in {CLEANED_S:g} s")
            await asyncio.sleep(LOOK_S)
        if name in self._testbed.attempts(stopped.step):
            raise Failed(f"{stopped}: {name} is still there, although newer leaders have saved since")
        return "cleaned away"

    async def _saved_since(self, stopped: Stopped) -> bool:
        """Whether a newer leader has saved a later step, and has tidied up after it."""
        registry = await self._testbed.catch_up()
        for manifest in registry.committed.values():
            if manifest.step > stopped.step and manifest.token > stopped.token:
                saver = self._ranks.all[manifest.rank]
                if saver.said("saved", step=manifest.step):
                    return True
        return False


def _outcome(rank: Rank, step: int) -> list[tuple[str, Record]]:
    return [(event, said) for event in ("fenced", "failed", "saved") for said in rank.said(event, step=step)]


def _warned(stopped: Stopped, text: str) -> bool:
    return any(text in said["text"] for said in stopped.rank.said("warned") if said["at"] > stopped.at)


def _fate(stopped: Stopped) -> str:
    """The outcome that its saver received."""
    if _warned(stopped, f"checkpoint {stopped.id} is not committed: "):
        return "refused"
    return "cleaned away under its hands" if _warned(stopped, f"step-{stopped.id} was removed") else ""


def main(arguments: Sequence[str]) -> int:
    options = parse_drill(NAME, __doc__ or "", arguments, rounds=ROUNDS)
    return asyncio.run(rounds.perform(options, lambda folder: testbed(options, folder), Drill))
