"""The overhead of Instep's etcd client over a raw grpc.aio stub: same event loop, same server, alternating calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter

from benchmarks.figures import Figure, median
from benchmarks.raw import RawStub
from instep.etcd import Client
from instep.testing import EtcdServer

KEY = "/bench/client"
VALUE = "0.0003"
WARM_UP = 100
US = 1e6

Call = Callable[[], Awaitable[object]]


async def measure(*, quick: bool) -> list[Figure]:
    calls = 1500 if quick else 8000
    # Without fsync: disk latency would hide the overhead of the client.
    with EtcdServer(fsync=False) as server:
        async with RawStub(server.endpoint) as raw, Client([server.endpoint]) as client:
            key, value = KEY.encode(), VALUE.encode()
            puts = await _alternate(lambda: client.put(KEY, VALUE), lambda: raw.put(key, value), calls)
            gets = await _alternate(lambda: client.get(KEY), lambda: raw.get(key), calls)
    return [*_figures("put", *puts), *_figures("get", *gets)]


def _figures(name: str, ours: list[float], bare: list[float]) -> list[Figure]:
    return [
        Figure(measure=f"{name} through instep.etcd.Client: median", value=median(ours) * US, unit="µs"),
        Figure(measure=f"{name} through a raw grpc.aio stub: median", value=median(bare) * US, unit="µs"),
        Figure(
            measure=f"{name}: Client / raw stub",
            value=median(ours) / median(bare),
            target=1.1,
            note=f"{len(ours)} calls of each in turn on one event loop; etcd without fsync; raw: no timeouts",
        ),
    ]


async def _alternate(ours: Call, bare: Call, calls: int) -> tuple[list[float], list[float]]:
    """Seconds of each call; the order within a pair alternates."""
    times: tuple[list[float], list[float]] = ([], [])
    for index in range(WARM_UP + calls):
        order = ((0, ours), (1, bare)) if index % 2 else ((1, bare), (0, ours))
        for place, call in order:
            began = perf_counter()
            await call()
            if index >= WARM_UP:
                times[place].append(perf_counter() - began)
    return times
