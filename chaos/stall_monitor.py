"""Watches that the run makes progress: suspends faults when it stalls too long, and fails when no fault explains it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.fault_plan import WORLD_SIZE, Lane
from chaos.harness.node import Node
from chaos.harness.ranks import Ranks
from chaos.harness.shared_state import Field
from chaos.injector import FaultInjector
from chaos.options import Failed

LOOK_S = 0.1
SUSPEND_AFTER_S = 20.0
"""A run that stalls this long gets time to recover before the next fault."""
COLLECTIVE_TIMEOUT_S = 10.0
"""A stall after which a collective would time out and torchrun would restart all ranks."""
QUIET_S = 3.0
"""This much of it must be without a fault: otherwise the run might still continue on its own."""
BOUND_S = 30.0
"""The longest stall while no fault is active."""
KILLS_LOOKS = 20
"""A step that was almost done may still end after a kill: kills of the last two seconds count for the stall too."""
STACKS_S = 0.5


@dataclass(slots=True)
class StallClock:
    """`stalled_s`: since the last step. `unexplained_s`: the part of it in which no fault was active.

    `longest_s` and `longest_unexplained_s` are the maxima of both over the run.
    """

    stalled_s: float = 0.0
    unexplained_s: float = 0.0
    longest_s: float = 0.0
    longest_unexplained_s: float = 0.0
    _progress: tuple[int, int] = (0, -1)
    _looked_at: float | None = field(default=None)

    def look(self, now: float, progress: tuple[int, int], *, broken: bool) -> None:
        """Call it often: `progress` is (epoch, lowest step done), `broken` whether a fault is active."""
        since_s = 0.0 if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        if progress != self._progress:
            self._progress = progress
            self.stalled_s = self.unexplained_s = 0.0
            return
        self.stalled_s += since_s
        if not broken:
            self.unexplained_s += since_s
        self.longest_s = max(self.longest_s, self.stalled_s)
        self.longest_unexplained_s = max(self.longest_unexplained_s, self.unexplained_s)


class StallMonitor:
    """Looks ten times a second. `collective_timeouts` counts the times when all ranks had to be restarted because
    the survivors of a node without an agent waited for a dead rank (docs/guarantees.md, known limits)."""

    def __init__(self, ranks: Ranks, nodes: Sequence[Node], injector: FaultInjector) -> None:
        self.clock = StallClock()
        self.collective_timeouts = 0
        self.suspended_s = 0.0
        self._ranks = ranks
        self._nodes = nodes
        self._injector = injector
        self._kills_before: deque[tuple[int, int]] = deque([(0, 0)], maxlen=KILLS_LOOKS)

    def __repr__(self) -> str:
        return f"StallMonitor({self.clock!r})"

    async def run(self) -> None:
        """Runs until cancelled. Raises Failed if the run stalls without a reason, or if a rank ends without a fault."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self._check_ends()
            await self._look()

    async def _check_ends(self) -> None:
        shared = self._ranks.shared
        for rank, code in self._ranks.ended().items():
            if code or shared.get(rank, Field.PASSED) < shared.last_step:
                raise Failed(f"rank {rank} ended with {code}:\n{self._ranks.log_tail(rank)}")

    async def _look(self) -> None:
        injector, clock = self._injector, self.clock
        # The clients beside the run have separate links: a cut of one does not explain a stall of the run.
        broken = bool(injector.open.keys() - {Lane.HOLDERS}) or injector.ranks_lock.locked()
        clock.look(time.monotonic(), (self._ranks.epoch, self._ranks.shared.lowest_arrived()), broken=broken)
        if not clock.stalled_s:
            self._kills_before.append((injector.agent_kills, injector.worker_kills))
        injector.suspend(clock.stalled_s > SUSPEND_AFTER_S)
        if injector.suspended:
            self.suspended_s += LOOK_S
        timed_out = clock.stalled_s > COLLECTIVE_TIMEOUT_S and clock.unexplained_s > QUIET_S
        if timed_out and self._ranks.shared.is_waited() and self._is_known_limit():
            self.collective_timeouts += 1
            await injector.restart(tuple(range(WORLD_SIZE)))
        elif clock.unexplained_s > BOUND_S:
            raise Failed(await self._what_each_did())

    def _is_known_limit(self) -> bool:
        """An agent and a worker were both killed since shortly before the last step."""
        agents, workers = self._kills_before[0]
        return self._injector.agent_kills > agents and self._injector.worker_kills > workers

    async def _what_each_did(self) -> str:
        self._ranks.print_stacks()
        await asyncio.sleep(STACKS_S)
        parts = [f"no step for {self.clock.stalled_s:.1f} s, {self.clock.unexplained_s:.1f} s of it unexplained"]
        parts.append(repr(self._ranks))
        parts += [f"--- rank {rank}\n{self._ranks.log_tail(rank)}" for rank in range(WORLD_SIZE)]
        parts += [f"--- agent of node {node!r}\n{node.log_tail()}" for node in self._nodes]
        return "\n".join(parts)
