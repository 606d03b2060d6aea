"""How soon a client works again after a server of its cluster is killed, frozen or restarted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

from benchmarks.figures import Figure, median, quantile
from instep.errors import EtcdError
from instep.etcd import Client, Watch
from instep.testing import EtcdCluster, EtcdMember, EtcdServer

MEMBERS = 3
DOWN_S = 2.5
LIMIT_S = 30.0
CALL_TIMEOUT_S = 5.0
LOOK_S = 0.002
KEY = "/bench/recovery"

Fault = Callable[[Client], AbstractAsyncContextManager[EtcdMember]]
"""Breaks a member for the duration of the block."""


@dataclass(slots=True)
class Samples:
    """Seconds from the fault to the recovery, by kind."""

    calls: list[float] = field(default_factory=list)
    calls_after_leader: list[float] = field(default_factory=list)
    watches: list[float] = field(default_factory=list)


async def measure(*, quick: bool) -> list[Figure]:
    kills, freezes, returns = (3, 1, 1) if quick else (21, 4, 5)
    with EtcdCluster(MEMBERS) as cluster:
        killed = await _sample_kills(cluster, kills)
        frozen = await _sample_freezes(cluster, freezes)
    with EtcdServer() as server:
        returned = await _sample_returns(server, returns)
    return [*_kill_figures(killed), *_freeze_figures(frozen), _return_figure(returned)]


def _kill_figures(samples: Samples) -> list[Figure]:
    calls, led, watches = samples.calls, samples.calls_after_leader, samples.watches
    note = f"{len(calls)} kills, each member in turn; consecutive puts, any of which may fail"
    led_note = f"{len(led)} of these kills; etcd elects another within 1 to 2 s"
    watch_note = f"{len(watches)} of these kills"
    return [
        _figure("1 of 3 servers killed, until calls succeed: median", median(calls), note, target=2.0),
        _figure("the same: p95", quantile(calls, 0.95)),
        _figure("the same, when it was the leader: median", median(led), led_note),
        _figure(
            "server of a watch killed, until the watch resumes on another server: median",
            median(watches),
            watch_note,
            target=1.0,
        ),
    ]


def _freeze_figures(samples: Samples) -> list[Figure]:
    note = f"{len(samples.calls)} freezes of the server that the client uses"
    return [
        _figure("1 of 3 servers frozen, until a write succeeds: longest", max(samples.calls), note, target=4.0),
        _figure("1 of 3 servers frozen, until the watch leaves it: longest", max(samples.watches), note, target=4.0),
    ]


def _return_figure(watches: list[float]) -> Figure:
    note = f"{len(watches)} times, after {DOWN_S:g} s without it; from the moment that its port is open"
    return _figure("only server restarted, until the watch resumes: longest", max(watches), note, target=1.0)


def _figure(measure: str, value_s: float, note: str = "", *, target: float | None = None) -> Figure:
    return Figure(measure=measure, value=value_s, unit="s", target=target, note=note)


async def _sample_kills(cluster: EtcdCluster, kills: int) -> Samples:
    turn = itertools.cycle(cluster.members)

    @asynccontextmanager
    async def killed(_client: Client) -> AsyncIterator[EtcdMember]:
        member = next(turn)
        await asyncio.to_thread(member.kill)
        yield member
        await asyncio.to_thread(member.restart)

    return await _sample(cluster, kills, killed)


async def _sample_freezes(cluster: EtcdCluster, freezes: int) -> Samples:
    members = {member.endpoint: member for member in cluster.members}

    @asynccontextmanager
    async def frozen(client: Client) -> AsyncIterator[EtcdMember]:
        member = members[client.endpoint]
        await asyncio.to_thread(member.pause)
        try:
            yield member
        finally:
            member.resume()

    return await _sample(cluster, freezes, frozen)


async def _sample(cluster: EtcdCluster, faults: int, fault: Fault) -> Samples:
    """Breaks and repairs a member `faults` times while a client writes and watches."""
    samples = Samples()
    async with Client(cluster.endpoints, timeout_s=CALL_TIMEOUT_S) as client, client.watch(KEY) as watch:
        reading = asyncio.create_task(_read(watch))
        for _ in range(faults):
            await _written(client)
            leader = await asyncio.to_thread(cluster.leader)
            watched, resumes = watch.endpoint, watch.resumes
            began = monotonic()
            async with fault(client) as member:
                had_the_watch = member.endpoint == watched
                calls, resumed = await asyncio.gather(_written(client), _resumed(watch, resumes + had_the_watch))
            samples.calls.append(calls - began)
            if member is leader:
                samples.calls_after_leader.append(calls - began)
            if had_the_watch:
                samples.watches.append(resumed - began)
            await asyncio.to_thread(cluster.wait_healthy)
        await watch.close()
        await reading
    return samples


async def _sample_returns(server: EtcdServer, returns: int) -> list[float]:
    watches: list[float] = []
    async with Client(server.endpoints, timeout_s=CALL_TIMEOUT_S) as client, client.watch(KEY) as watch:
        reading = asyncio.create_task(_read(watch))
        for _ in range(returns):
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(DOWN_S)  # the length of the fault
            resumes = watch.resumes + 1
            await asyncio.to_thread(server.restart)
            began = monotonic()
            watches.append(await _resumed(watch, resumes) - began)
        await watch.close()
        await reading
    return watches


async def _written(client: Client) -> float:
    """The time when a put has succeeded; retries until then."""
    while True:
        try:
            await client.put(KEY, "1")
        except EtcdError:
            continue
        return monotonic()


async def _resumed(watch: Watch, resumes: int) -> float:
    """The time when the watch has resumed `resumes` times."""
    async with asyncio.timeout(LIMIT_S):
        while watch.resumes < resumes:  # noqa: ASYNC110  # no event reports the count
            await asyncio.sleep(LOOK_S)
    return monotonic()


async def _read(watch: Watch) -> None:
    async for _batch in watch:
        pass
