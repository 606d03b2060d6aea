"""The cost of an idle agent with 8 training workers: CPU time and memory."""

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
        async with (
            RawStub(server.endpoint) as raw,
            Fleet(server, "steps", str(STEP_S), "sleep", per_node=RANKS) as fleet,
        ):
            await fleet.start_clock()
            await asyncio.sleep(SETTLE_S)
            supervisor, agent = fleet.nodes[0].agents()
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
