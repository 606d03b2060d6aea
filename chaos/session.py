"""A session: ranks start, faults begin and end, the ranks end. It leaves a folder of recordings to check."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from chaos.fault_plan import WORLD_SIZE, Fault
from chaos.harness.tasks import Background, until, until_async
from chaos.operator import FINAL
from chaos.options import Failed, say
from chaos.testbed import Testbed
from instep.errors import EtcdError
from instep.protocol.records import Agreed

START_TIMEOUT_S = 60.0
CONVERGE_TIMEOUT_S = 30.0
"""Within this time after the end of the last fault, all ranks hold the operator's last values."""
END_TIMEOUT_S = 30.0
HEARD_TIMEOUT_S = 10.0
POLL_S = 0.05
MARGIN_STEPS = 40
"""All ranks have read the last step before the first of them reaches it."""


class Session:
    """Executes a plan on a testbed. `figures` has its measurements in seconds."""

    def __init__(self, testbed: Testbed, faults: Sequence[Fault], duration_s: float) -> None:
        self.figures: dict[str, float] = {}
        self._testbed = testbed
        self._faults = faults
        self._duration_s = duration_s

    def __repr__(self) -> str:
        return f"Session({len(self._faults)} faults in {self._duration_s:g} s)"

    async def run(self) -> None:
        """Raises Failed."""
        testbed = self._testbed
        others = [testbed.calls.watch_loop(), testbed.watcher.run(testbed.prober.key), testbed.prober.run()]
        beside = [client.run() for client in testbed.registers] + [client.run() for client in testbed.election_clients]
        async with Background(others), Background(beside):
            await self._start()
            async with Background([testbed.monitor.run()]) as watched:
                await watched.during(self._break())
                await watched.during(self._converge())
            await self._end()
            await self._read_all()

    async def _start(self) -> None:
        began = time.monotonic()
        ranks = self._testbed.ranks
        ranks.start(range(WORLD_SIZE))
        await until(lambda: ranks.shared.lowest_arrived() >= 0 or bool(ranks.ended()), START_TIMEOUT_S)
        if ranks.shared.lowest_arrived() < 0:
            said = "\n".join([ranks.records(0).read_text() if ranks.records(0).exists() else "", ranks.log_tail(0)])
            raise Failed(f"the run did not start: {ranks!r}, ended: {ranks.ended()}\n{said}")
        self.figures["start"] = time.monotonic() - began
        say(f"{WORLD_SIZE} ranks have started after {self.figures['start']:.1f} s")

    async def _break(self) -> None:
        async with Background([self._testbed.operator.run()]) as working:
            await working.during(self._testbed.injector.run(self._faults, self._duration_s))

    async def _converge(self) -> None:
        """Checks that all ranks hold the operator's last values within a time limit after the last fault."""
        began, testbed = time.monotonic(), self._testbed
        await testbed.operator.settle()
        if not await until_async(self._is_agreed, CONVERGE_TIMEOUT_S - (time.monotonic() - began)):
            raise Failed(
                f"the last change was not agreed on, or a command not decided, within {CONVERGE_TIMEOUT_S:g} s of the "
                f"last fault: {testbed.operator!r}"
            )
        self.figures["agreed after the last fault"] = time.monotonic() - began

    async def _is_agreed(self) -> bool:
        testbed = self._testbed
        try:
            pending = await testbed.operator.pending()
            found = await testbed.clients[0].get(testbed.keys.agreed)
        except EtcdError:
            return False
        agreed = Agreed.decode_or_none(found.value if found else None)
        if pending or agreed is None or agreed.directive.paused_at is not None or agreed.values != FINAL:
            await testbed.operator.insist()
            return False
        return agreed.gate is None or testbed.ranks.shared.lowest_arrived() >= agreed.gate

    async def _end(self) -> None:
        ranks = self._testbed.ranks
        ranks.shared.end_after(ranks.shared.highest_passed() + MARGIN_STEPS)
        if not await until(lambda: len(ranks.ended()) == WORLD_SIZE, END_TIMEOUT_S):
            ranks.print_stacks()
            await asyncio.sleep(POLL_S * 10)
            living = [rank for rank in range(WORLD_SIZE) if rank not in ranks.ended()]
            raise Failed(f"ranks {living} did not end: {ranks!r}\n{ranks.log_tail(living[0])}")
        if failed := {rank: code for rank, code in ranks.ended().items() if code}:
            rank = next(iter(failed))
            raise Failed(f"ranks ended with {failed}:\n{ranks.log_tail(rank)}")
        if not await until(lambda: all(node.agent_pid() is None for node in self._testbed.nodes), END_TIMEOUT_S):
            raise Failed(f"agents did not leave: {self._testbed.nodes}")

    async def _read_all(self) -> None:
        mark = await self._testbed.reference.extend_at_last(END_TIMEOUT_S)
        if not await self._testbed.watcher.wait_heard(mark, HEARD_TIMEOUT_S):
            raise Failed(f"revision {mark} was not heard within {HEARD_TIMEOUT_S:g} s: {self._testbed.watcher!r}")
