"""What a step boundary with nothing pending costs, against a per-step broadcast of an object on gloo."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.figures import Figure, median, quantile
from benchmarks.fleet import Fleet
from instep.testing import EtcdServer

RANKS = 2
US = 1e6


async def measure(*, quick: bool) -> list[Figure]:
    rounds = 40 if quick else 400
    with EtcdServer(fsync=True) as server, tempfile.TemporaryDirectory(prefix="instep-bench-") as folder:
        store = Path(folder) / "store"
        async with Fleet(server, "boundary", str(rounds), str(store), per_node=RANKS) as fleet:
            by_rank = await fleet.hear_all()
    boundary, asking, loop, broadcast = (
        [seconds for figures in by_rank for seconds in figures[name]]
        for name in ("boundary", "asking", "loop", "broadcast")
    )
    cost = median(boundary)
    return [
        Figure(
            measure="boundary, nothing pending: median",
            value=cost * US,
            unit="µs",
            target=1.0,
            note=f"per call, {RANKS} ranks, batches of 1000 calls; the loop around them is included",
        ),
        Figure(measure="boundary, nothing pending: p99 of batches", value=quantile(boundary, 0.99) * US, unit="µs"),
        Figure(
            measure="boundary, run.checkpoint_requested and run.leads: median",
            value=median(asking) * US,
            unit="µs",
            target=1.0,
        ),
        Figure(measure="empty loop: median", value=median(loop) * US, unit="µs"),
        Figure(measure=f"broadcast_object_list, gloo, {RANKS} ranks: median", value=median(broadcast) * US, unit="µs"),
        Figure(measure="boundary / broadcast_object_list", value=cost / median(broadcast), target=0.01),
    ]
