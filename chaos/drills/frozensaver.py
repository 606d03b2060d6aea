"""The saver and its agent are frozen during a save, beyond their lease, and resumed.

Every round: another rank leads in the meantime, the late commit of the frozen one is refused, its step has at most one
committed checkpoint, and a newer leader removes the directory that it left.
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
from chaos.drills.testbed import TTL_S, Testbed, testbed
from chaos.harness.processes import send
from chaos.harness.ranks import Rank
from chaos.harness.records import Record
from chaos.options import DrillOptions, Failed

NAME: Final = "frozensaver"
ROUNDS: Final = 6
REPLACED_S: Final = 11.0
"""The other rank of the node kills a frozen agent after about 10 s and starts another one."""
WHOLE_S: Final = 0.005
SUCCESSION_S: Final = 15.0
REFUSAL_S: Final = 30.0
REMOVED_S: Final = 30.0
MOST_IN_TIME: Final = 5
LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """Which processes are frozen in a round, when, and for how long."""

    saves: int
    """The number of the save, since the last round, during which the saver is frozen."""
    moment: Literal["writing", "about to commit"]
    part: float
    victims: Literal["worker, agent and supervisor", "node"]
    order: int
    for_s: float
    gap_s: float
    """Between the resumes of two processes."""

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
class FrozenSave:
    """The frozen processes and their save."""

    rank: Rank
    step: int
    token: int
    pids: list[int]
    at: float
    in_time: bool = False
    """Whether it committed before it was frozen."""

    @property
    def id(self) -> str:
        return f"{self.step}-{self.token}"


class Drill:
    """One run, which continues through all rounds."""

    def __init__(self, testbed: Testbed) -> None:
        self._testbed = testbed
        self._ranks = testbed.ranks
        self._in_time = 0

    async def begin(self) -> None:
        await self._testbed.start()
        await self._testbed.all_said("restored")

    async def round(self, number: int) -> str:
        """A freeze that comes after the commit does not count: another one follows."""
        said: list[str] = []
        while len(said) <= MOST_IN_TIME:
            in_time = self._in_time
            said.append(await self._try(Freeze.of(self._testbed.options, number, len(said))))
            if self._in_time == in_time:
                return "; then ".join(said)
        raise Failed(f"{MOST_IN_TIME} consecutive savers had committed before they were frozen")

    async def _try(self, freeze: Freeze) -> str:
        frozen = await self._freeze_saver(freeze)
        try:
            successor = await self._check_succession(frozen, freeze)
        finally:
            await self._resume(frozen, freeze)
        outcome = await self._check_refused(frozen)
        left = await self._check_removed(frozen)
        return (
            f"rank {frozen.rank.number} frozen in its save of step {frozen.step}, {freeze.moment} "
            f"({freeze.victims}), {monotonic() - frozen.at:.1f} s; rank {successor} leads; {outcome}; {left}"
        )

    async def finish(self) -> str:
        await self._testbed.finish()
        registry = await self._testbed.catch_up()
        for manifest in registry.registered.values():
            self._testbed.check_whole(manifest)
        late = f"{self._in_time} commits came just before the freeze, all late ones were refused"
        return f"{len(registry.committed)} checkpoints committed, no step twice; {late}"

    # -- the fault ----------------------------------------------------------------------------------------------------

    async def _freeze_saver(self, freeze: Freeze) -> FrozenSave:
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
        frozen = FrozenSave(rank, step, registry.leader.token, pids, monotonic())
        frozen.in_time = frozen.id in registry.committed
        self._in_time += frozen.in_time
        return frozen

    async def _resume(self, frozen: FrozenSave, freeze: Freeze) -> None:
        random.Random(freeze.order + 1).shuffle(frozen.pids)
        for pid in frozen.pids:
            send([pid], signal.SIGCONT)
            await asyncio.sleep(freeze.gap_s)

    # -- what must hold -----------------------------------------------------------------------------------------------

    async def _check_succession(self, frozen: FrozenSave, freeze: Freeze) -> int:
        """Another rank leads while the saver is frozen; if the ranks wait for the save, it saves the step."""
        deadline = frozen.at + max(SUCCESSION_S, freeze.for_s)
        while True:
            registry = await self._testbed.catch_up()
            leader = registry.leader
            assert leader is not None
            succeeded = leader.token > frozen.token and leader.rank != frozen.rank.number
            if succeeded and self._testbed.options.torch:
                succeeded = any(manifest.step == frozen.step for manifest in registry.committed.values())
            if succeeded and monotonic() >= frozen.at + freeze.for_s:
                return leader.rank
            if monotonic() > deadline:
                raise Failed(f"{frozen} was frozen for {monotonic() - frozen.at:.1f} s and no other rank took over")
            await asyncio.sleep(LOOK_S)

    async def _check_refused(self, frozen: FrozenSave) -> str:
        """The saver gets the outcome, at the latest when it is connected to its agent again; nothing is registered."""
        rank, step = frozen.rank, frozen.step
        what = f"the outcome of the save of step {step} by {rank}"
        await self._testbed.until(lambda: _outcome(rank, step), what, timeout_s=REFUSAL_S)
        event, said = _outcome(rank, step)[0]
        if frozen.in_time:
            return "committed before the freeze"
        fate = await self._testbed.until(lambda: _fate(frozen), what, timeout_s=REFUSAL_S)
        registry = await self._testbed.catch_up()
        if frozen.id in registry.committed:
            raise Failed(f"{frozen}: its late commit was made")
        waited = _warned(frozen, f"checkpoint {frozen.id} is not committed yet")
        expected = ("saved", True) if self._testbed.options.torch else ("fenced", None)
        if (event, said.get("known")) != (("saved", False) if waited else expected):
            raise Failed(f"{frozen}: {event} {said} instead of {expected}")
        return f"{fate}, reported later" if waited else fate

    async def _check_removed(self, frozen: FrozenSave) -> str:
        """The directory is removed when a newer leader has saved again. A script's own saver keeps it."""
        name = f"step-{frozen.step}-{frozen.token}"
        if frozen.in_time:
            return "kept"
        if not self._testbed.options.torch:
            if name not in self._testbed.attempts(frozen.step):
                raise Failed(f"{frozen}: {name} was deleted")
            return "left to the script"
        deadline = monotonic() + REMOVED_S
        while not await self._saved_since(frozen):
            if monotonic() > deadline:
                raise Failed(f"{frozen}: no newer leader has saved in {REMOVED_S:g} s")
            await asyncio.sleep(LOOK_S)
        if name in self._testbed.attempts(frozen.step):
            raise Failed(f"{frozen}: {name} still exists, although newer leaders have saved since")
        return "removed"

    async def _saved_since(self, frozen: FrozenSave) -> bool:
        """Whether a newer leader has saved a later step, and removed old directories after that."""
        registry = await self._testbed.catch_up()
        for manifest in registry.committed.values():
            if manifest.step > frozen.step and manifest.token > frozen.token:
                saver = self._ranks.all[manifest.rank]
                if saver.said("saved", step=manifest.step):
                    return True
        return False


def _outcome(rank: Rank, step: int) -> list[tuple[str, Record]]:
    return [(event, said) for event in ("fenced", "failed", "saved") for said in rank.said(event, step=step)]


def _warned(frozen: FrozenSave, text: str) -> bool:
    return any(text in said["text"] for said in frozen.rank.said("warned") if said["at"] > frozen.at)


def _fate(frozen: FrozenSave) -> str:
    """The outcome that the saver received."""
    if _warned(frozen, f"checkpoint {frozen.id} is not committed: "):
        return "refused"
    return "removed during the save" if _warned(frozen, f"step-{frozen.id} was removed") else ""


def main(arguments: Sequence[str]) -> int:
    return run_drill(NAME, __doc__, ROUNDS, arguments, testbed, Drill)
