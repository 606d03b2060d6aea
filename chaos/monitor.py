"""Watches that the run goes on: holds fire when it stands too long, and says so when no fault explains it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence

from chaos.board import Word
from chaos.conduct import Conductor
from chaos.faults import WORLD_SIZE, Lane
from chaos.nodes import Node
from chaos.ranks import Ranks
from chaos.stalls import StallClock

LOOK_S = 0.1
HOLD_FIRE_AFTER_S = 20.0
"""A run that stands this long gets time to recover before more is broken."""
COLLECTIVE_TIMEOUT_S = 10.0
"""Standing after which a collective would time out and torchrun would start all ranks anew."""
QUIET_S = 3.0
"""So much of that must be without a fault: else the run might yet go on by itself."""
BOUND_S = 30.0
"""Nothing may keep the run from going on for longer once all faults are mended."""
KILLS_LOOKS = 20
"""A step that was almost done is still done after a kill: those of the last two seconds count for the stall too."""
STACKS_S = 0.5


class Hang(Exception):
    """The run stands still without a reason, or a rank ended that nobody killed. The text holds what each one did."""


class Monitor:
    """Looks ten times a second. `collective_timeouts` counts the times when all ranks had to be started anew because
    the survivors of a node without an agent waited for a dead rank (docs/guarantees.md, known limits)."""

    def __init__(self, ranks: Ranks, nodes: Sequence[Node], conductor: Conductor) -> None:
        self.clock = StallClock()
        self.collective_timeouts = 0
        self.held_s = 0.0
        self._ranks = ranks
        self._nodes = nodes
        self._conductor = conductor
        self._kills_before: deque[tuple[int, int]] = deque([(0, 0)], maxlen=KILLS_LOOKS)

    def __repr__(self) -> str:
        return f"Monitor({self.clock!r})"

    async def run(self) -> None:
        """Until cancelled; raises Hang."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._check_ends()
            await self._look()

    async def _check_ends(self) -> None:
        board = self._ranks.board
        for rank, code in self._ranks.ended().items():
            if code or board.get(rank, Word.PASSED) < board.last_step:
                raise Hang(f"rank {rank} ended with {code}:\n{self._ranks.log_tail(rank)}")

    async def _look(self) -> None:
        conductor, clock = self._conductor, self.clock
        # The clients beside the run have links of their own: no cut of one explains a stall of the run.
        broken = bool(conductor.open.keys() - {Lane.HOLDERS}) or conductor.ranks_lock.locked()
        clock.look(time.monotonic(), (self._ranks.epoch, self._ranks.board.lowest_arrived()), broken=broken)
        if not clock.standing_s:
            self._kills_before.append((conductor.agent_kills, conductor.worker_kills))
        conductor.hold_fire(clock.standing_s > HOLD_FIRE_AFTER_S)
        if conductor.held:
            self.held_s += LOOK_S
        timed_out = clock.standing_s > COLLECTIVE_TIMEOUT_S and clock.unexplained_s > QUIET_S
        if timed_out and self._ranks.board.is_waited() and self._is_known_limit():
            self.collective_timeouts += 1
            await conductor.restart(tuple(range(WORLD_SIZE)))
        elif clock.unexplained_s > BOUND_S:
            raise Hang(await self._what_each_did())

    def _is_known_limit(self) -> bool:
        """An agent and a worker were both killed since shortly before the last step."""
        agents, workers = self._kills_before[0]
        return self._conductor.agent_kills > agents and self._conductor.worker_kills > workers

    async def _what_each_did(self) -> str:
        self._ranks.print_stacks()
        await asyncio.sleep(STACKS_S)
        parts = [f"no step for {self.clock.standing_s:.1f} s, {self.clock.unexplained_s:.1f} s of it unexplained"]
        parts.append(repr(self._ranks))
        parts += [f"--- rank {rank}\n{self._ranks.log_tail(rank)}" for rank in range(WORLD_SIZE)]
        parts += [f"--- agent of node {node!r}\n{node.log_tail()}" for node in self._nodes]
        return "\n".join(parts)
