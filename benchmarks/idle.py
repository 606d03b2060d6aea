"""What an agent costs while nothing changes: processor time and memory, with 8 workers that train."""

from __future__ import annotations

import asyncio
from time import monotonic

from chaos.harness.processes import cpu_s, memory_mb

from benchmarks.figures import Figure, median
from benchmarks.fleet import RUN, Fleet
from benchmarks.raw import RawStub
from instep.protocol.keys import Keys
from instep.testing import EtcdServer

RANKS = 8
STEP_S = 0.1
SETTLE_S = 2.0
PARTS = 4


async def measure(*, quick: bool) -> list[Figure]:
    window_s = 5.0 if quick else 20.0
    with EtcdServer(fsync=True) as server:
        async with RawStub(server.endpoint) as raw, Fleet(server, "steps", RANKS, str(STEP_S), "sleep") as fleet:
            await fleet.start()
            await asyncio.sleep(SETTLE_S)
            agent, supervisor = fleet.agent_pids()
            parts = [await _share(agent, window_s / PARTS) for _ in range(PARTS)]
            memory = memory_mb(agent)
            both_mb = memory["Pss"] + memory_mb(supervisor)["Pss"]
            await raw.put(Keys("/training", RUN).config_of("last").encode(), b"true")
            await fleet.hear_all()
    return [
        Figure(
            measure=f"agent, nothing changing, {RANKS} workers: share of a core",
            value=100 * sum(parts) / PARTS,
            unit="%",
            target=1.0,
            note=f"over {window_s:g} s; median of {PARTS} parts {100 * median(parts):.2f} %; this agent leads the run",
        ),
        Figure(measure="agent: RSS", value=memory["Rss"], unit="MB", target=60.0),
        Figure(measure="agent and its supervisor: PSS", value=both_mb, unit="MB", target=60.0),
    ]


async def _share(pid: int, window_s: float) -> float:
    spent, began = cpu_s(pid), monotonic()
    await asyncio.sleep(window_s)
    return (cpu_s(pid) - spent) / (monotonic() - began)
