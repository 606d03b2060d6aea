"""A session: started, broken for a while, mended, ended. What is left is a folder of histories to be judged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from chaos.faults import WORLD_SIZE, Fault
from chaos.operator import FINAL
from chaos.tasks import Background, until, until_async
from chaos.world import World
from instep.coordination.records import Agreed
from instep.errors import EtcdError

START_TIMEOUT_S = 60.0
CONVERGE_TIMEOUT_S = 30.0
"""Within this time of the last fault's end all ranks hold the operator's last values."""
END_TIMEOUT_S = 30.0
HEARD_TIMEOUT_S = 10.0
POLL_S = 0.05
MARGIN_STEPS = 40
"""All ranks have seen where to end before the first of them is there."""


class Failed(Exception):
    """The session could not be carried through; what it says is a finding, not a mishap of the test."""


class Session:
    """Carries a plan out on a world. `figures` holds what it measured on the way, in seconds."""

    def __init__(self, world: World, faults: Sequence[Fault], duration_s: float, say: Callable[[str], None]) -> None:
        self.figures: dict[str, float] = {}
        self._world = world
        self._faults = faults
        self._duration_s = duration_s
        self._say = say

    def __repr__(self) -> str:
        return f"Session({len(self._faults)} faults in {self._duration_s:g} s)"

    async def run(self) -> None:
        """Raises Failed, or Hang of the monitor."""
        world = self._world
        others = [world.calls.watch_loop(), world.watcher.run(world.prober.key), world.prober.run()]
        beside = [client.run() for client in world.registers] + [client.run() for client in world.bystanders]
        async with Background(others), Background(beside):
            await self._start()
            async with Background([world.monitor.run()]) as watched:
                await watched.during(self._break())
                await watched.during(self._converge())
            await self._end()
            await self._read_all()

    async def _start(self) -> None:
        began = time.monotonic()
        ranks = self._world.ranks
        ranks.start(range(WORLD_SIZE))
        await until(lambda: ranks.board.lowest_arrived() >= 0 or bool(ranks.ended()), START_TIMEOUT_S)
        if ranks.board.lowest_arrived() < 0:
            said = "\n".join([ranks.records(0).read_text() if ranks.records(0).exists() else "", ranks.log_tail(0)])
            raise Failed(f"the run did not start: {ranks!r}, ended: {ranks.ended()}\n{said}")
        self.figures["start"] = time.monotonic() - began
        self._say(f"{WORLD_SIZE} ranks have started after {self.figures['start']:.1f} s")

    async def _break(self) -> None:
        async with Background([self._world.operator.run()]) as working:
            await working.during(self._world.conductor.run(self._faults, self._duration_s))

    async def _converge(self) -> None:
        """All is mended: the operator's last word must hold everywhere before long."""
        began, world = time.monotonic(), self._world
        await world.operator.settle()
        if not await until_async(self._is_agreed, CONVERGE_TIMEOUT_S - (time.monotonic() - began)):
            raise Failed(
                f"the last change was not agreed on, or a command not decided, within {CONVERGE_TIMEOUT_S:g} s of the "
                f"last fault: {world.operator!r}"
            )
        self.figures["agreed after the last fault"] = time.monotonic() - began

    async def _is_agreed(self) -> bool:
        world = self._world
        try:
            standing = await world.operator.standing()
            found = await world.clients[0].get(world.keys.agreed)
        except EtcdError:
            return False
        agreed = Agreed.decode_or_none(found.value if found else None)
        if standing or agreed is None or agreed.course.paused_at is not None or agreed.values != FINAL:
            await world.operator.insist()
            return False
        return agreed.gate is None or world.ranks.board.lowest_arrived() >= agreed.gate

    async def _end(self) -> None:
        ranks = self._world.ranks
        ranks.board.end_after(ranks.board.highest_passed() + MARGIN_STEPS)
        if not await until(lambda: len(ranks.ended()) == WORLD_SIZE, END_TIMEOUT_S):
            ranks.print_stacks()
            await asyncio.sleep(POLL_S * 10)
            living = [rank for rank in range(WORLD_SIZE) if rank not in ranks.ended()]
            raise Failed(f"ranks {living} did not end: {ranks!r}\n{ranks.log_tail(living[0])}")
        if failed := {rank: code for rank, code in ranks.ended().items() if code}:
            rank = next(iter(failed))
            raise Failed(f"ranks ended with {failed}:\n{ranks.log_tail(rank)}")
        if not await until(lambda: all(node.agent_pid() is None for node in self._world.nodes), END_TIMEOUT_S):
            raise Failed(f"agents did not leave: {self._world.nodes}")

    async def _read_all(self) -> None:
        mark = await self._world.reference.extend_at_last(END_TIMEOUT_S)
        if not await self._world.watcher.wait_heard(mark, HEARD_TIMEOUT_S):
            raise Failed(f"revision {mark} was not heard within {HEARD_TIMEOUT_S:g} s: {self._world.watcher!r}")
