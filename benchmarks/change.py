"""The latency of a change: from the put of the desired value until the last rank has applied it."""

from __future__ import annotations

import asyncio
import json
import os
import random
from dataclasses import dataclass, field
from time import monotonic

from benchmarks.figures import Figure, median, quantile
from benchmarks.fleet import RUN, Fleet
from benchmarks.raw import RawStub
from instep.etcd import Client
from instep.protocol.keys import Keys
from instep.testing import EtcdServer

RANKS = 8
STEP_S = 0.005
WARM_UP = 5
SETTLE_S = 2.0
MS = 1e3


@dataclass(slots=True)
class Samples:
    changes: list[float] = field(default_factory=list)
    puts: list[float] = field(default_factory=list)
    plans: int = 0
    aborted: int = 0


async def measure(*, quick: bool) -> list[Figure]:
    changes = 25 if quick else 120
    figures = _figures(await _sample(changes, ranks=RANKS, fsync=True, steps="sleep"), f"{RANKS} ranks", promised=True)
    if not quick:
        unsynced = await _sample(changes, ranks=RANKS, fsync=False, steps="sleep")
        figures += _figures(unsynced, f"{RANKS} ranks, etcd without fsync", promised=False)
        cores = os.cpu_count() or 1
        busy = await _sample(changes // 2, ranks=cores, fsync=True, steps="spin")
        figures += _figures(busy, f"{cores} ranks that keep every core busy", promised=False)
    return figures


def _figures(samples: Samples, who: str, *, promised: bool) -> list[Figure]:
    latency, put = median(samples.changes), median(samples.puts)
    aborts = 100 * samples.aborted / max(1, samples.plans)
    return [
        Figure(measure=f"change to applied, {who}: median", value=latency * MS, unit="ms"),
        Figure(measure=f"change to applied, {who}: p95", value=quantile(samples.changes, 0.95) * MS, unit="ms"),
        Figure(measure=f"raw put in the same run, {who}: median", value=put * MS, unit="ms"),
        Figure(
            measure=f"change to applied / raw put, {who}",
            value=latency / put,
            target=20.0 if promised else None,
            note="a put through a raw grpc.aio stub between any two changes, while the ranks train",
        ),
        Figure(
            measure=f"aborted plans, {who}",
            value=aborts,
            unit="%",
            target=5.0 if promised else None,
            note=f"{samples.aborted} of {samples.plans}",
        ),
    ]


async def _sample(changes: int, *, ranks: int, fsync: bool, steps: str) -> Samples:
    samples = Samples()
    keys = Keys("/training", RUN)
    with EtcdServer(fsync=fsync) as server:
        async with (
            RawStub(server.endpoint) as raw,
            Client([server.endpoint]) as client,
            Fleet(server, "steps", str(STEP_S), steps, per_node=ranks) as fleet,
        ):
            await fleet.start_clock()
            await asyncio.sleep(SETTLE_S)
            for number in range(-WARM_UP, changes):
                put, change = await _once(raw, fleet, keys, 0.5 + number / 1e6)
                if number >= 0:
                    samples.puts.append(put)
                    samples.changes.append(change)
            await _count(client, keys, samples)
            await raw.put(keys.config_of("last").encode(), b"true")
            await fleet.hear_all()
    return samples


async def _once(raw: RawStub, fleet: Fleet, keys: Keys, lr: float) -> tuple[float, float]:
    await asyncio.sleep(random.uniform(0.02, 0.06))  # changes must not synchronize with the steps
    began = monotonic()
    await raw.put(b"/bench/raw", b"0.0003")
    put_s = monotonic() - began
    await asyncio.sleep(random.uniform(0.01, 0.03))
    began = monotonic()
    await raw.put(keys.config_of("lr").encode(), json.dumps(lr).encode())
    applied = await fleet.hear_all()
    if any(value != lr for value, _at in applied):
        raise RuntimeError(f"the ranks applied {applied} instead of {lr}")
    return put_s, max(at for _value, at in applied) - began


async def _count(client: Client, keys: Keys, samples: Samples) -> None:
    listing = await client.range(keys.plans)
    decisions = [json.loads(item.value) for item in listing.kvs if item.key.endswith("/decision")]
    samples.plans = len(decisions)
    samples.aborted = sum(not decision["commit"] for decision in decisions)
