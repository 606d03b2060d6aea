"""The scenarios for each backend of rendezvous: forming, losing an agent, adding an agent, many at once."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from benchmarks.load import Load
from benchmarks.rendezvous_backends import LAST_CALL_S, Backend
from benchmarks.rendezvous_handlers import Members
from benchmarks.rendezvous_run import Run
from instep.testing import EtcdServer

STAGGER_S = 0.3
LOST_S = 30.0
HUNG_S = 10.0
FORM_TRIES = 3
FORM_LIMIT_S = {"etcd3": 30.0, "c10d": 10.0}
"""c10d hangs when an agent joins after the last call, so waiting longer does not help."""
GROWTH = 3
ROOM = 8
CROWD_PROCESSES = 4
CROWD_ON_EACH = 16
CROWD = CROWD_PROCESSES * CROWD_ON_EACH


AT_A_TIME = 4
GUARD = b"guard.py"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kill:
    """The agent of `rank` killed: seconds until the survivors train again; None if they never do."""

    agents: int
    rank: int
    took_s: float | None


async def form(backends: Sequence[Backend], agents: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each formation by backend, alternating, from the last call to the last return."""
    chance = random.Random(agents)
    times: dict[str, list[float]] = {backend.name: [] for backend in backends}
    async with Members(agents) as members:
        for number in range(rounds + 1):
            delays_s = [chance.uniform(0, STAGGER_S) for _ in range(agents)]
            for backend in backends:
                took_s = await members.form(backend, delays_s)
                if number:  # the first one imports
                    times[backend.name].append(took_s)
    return times


async def reform(backends: Mapping[str, Backend], agents: int, passes: int) -> dict[str, list[Kill]]:
    """The agent of each rank killed so often with each backend, by its name here: four agents of each at a time.

    Names that end with a star: the agent's guard stays alive. A run that never formed has no kill.
    """
    kills: dict[str, list[Kill]] = {name: [] for name in backends}
    at_a_time = max(1, AT_A_TIME // agents)
    for first in [*range(0, agents, at_a_time)] * passes:
        for name, kill in await together(
            *(
                _named(name, _kill(backend, agents, rank, GUARD if name.endswith("*") else None))
                for rank in range(first, first + at_a_time)
                for name, backend in backends.items()
            )
        ):
            kills[name] += [kill] if kill is not None else []
    return kills


async def scale_up(backend: Backend, times: int) -> list[float | None]:
    """Seconds from the start of an added agent until all train, minus the last call; None: not within 10 s after it.

    A run starts with one agent and grows by three, one after another; then another run follows.
    """
    took_s: list[float | None] = []
    while len(took_s) < times:
        async with _formed(backend, 1, f"1:{ROOM}") as run:
            if run is None:
                raise RuntimeError(f"{backend.name}: one agent never began")
            for _ in range(min(GROWTH, times - len(took_s))):
                (agent,) = await run.start()
                at = await run.works(run.agents, limit_s=HUNG_S + LAST_CALL_S)
                took_s.append(None if at is None else at - agent.began - LAST_CALL_S)
                if at is None:
                    print(f"{backend.name}: {len(run.agents)} agents never worked together", file=sys.stderr)
                    break
    return took_s


async def begin(backend: Backend) -> float:
    """Seconds from the start of two torchrun processes until both workers train."""
    async with Run(backend.place(), "2", loaded=False) as run:
        first, _second = await run.start(2)
        at = await run.works(run.agents)
        if at is None:
            raise RuntimeError(f"{backend.name}: two agents never began\n{run.log()}")
        return at - first.began


async def crowd(backend: Backend) -> float:
    """Seconds until 64 handlers that join at once have formed a round, from before the first one connects."""
    async with Members(CROWD_PROCESSES) as members:
        await members.form(backend, [0.0] * CROWD_PROCESSES)  # imports
        joined = await members.come(backend.place(), CROWD_ON_EACH)
        return max(one.returned for one in joined) - min(one.called for one in joined)


async def crowd_with_load(backend: Backend, server: EtcdServer) -> tuple[float, Load]:
    """The same, and the load of etcd until then."""
    async with Members(CROWD_PROCESSES) as members:
        await members.form(backend, [0.0] * CROWD_PROCESSES)
        before = await asyncio.to_thread(Load.of, server)
        joined = await members.come(backend.place(), CROWD_ON_EACH)
        after = await asyncio.to_thread(Load.of, server)
        return max(one.returned for one in joined) - min(one.called for one in joined), after.since(before)


async def together(*works: Coroutine[Any, Any, T]) -> list[T]:
    """What each returns. If one fails, the others are ended first."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
    return [task.result() for task in tasks]


async def _named(name: str, kill: Awaitable[Kill | None]) -> tuple[str, Kill | None]:
    return name, await kill


async def _kill(backend: Backend, agents: int, rank: int, spare: bytes | None) -> Kill | None:
    async with _formed(backend, agents, f"{max(1, agents - 1)}:{agents}") as run:
        if run is None:
            return None
        (victim,) = (agent for agent in run.agents if agent.report is not None and agent.report.group_rank == rank)
        others = [agent for agent in run.agents if agent is not victim]
        began = run.kill(victim, spare=spare)
        at = await run.works(others, limit_s=LOST_S)
        return Kill(agents, rank, None if at is None else at - began)


@asynccontextmanager
async def _formed(backend: Backend, agents: int, nodes: str) -> AsyncIterator[Run | None]:
    """A run whose agents have formed. On a busy machine one of c10d's may come after the last call, which hangs: then
    it is tried again, three times in all; None after that.
    """
    for _ in range(FORM_TRIES):
        async with Run(backend.place(), nodes) as run:
            await run.start(agents)
            if await run.works(run.agents, limit_s=FORM_LIMIT_S[backend.name]) is not None:
                yield run
                return
            print(f"{backend.name}: {agents} agents did not begin together\n{run.log()}", file=sys.stderr)
    yield None
