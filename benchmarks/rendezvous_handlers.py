"""Handlers without torchrun, in processes with torch loaded: more precise times, and more handlers than agents."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, Self

from benchmarks.rendezvous_backends import ENVIRONMENT, Backend, Place, with_torch_loaded
from benchmarks.workers.rendezvous_agent import Joined, serve_handlers

ANSWER_TIMEOUT_S = 90.0


class Member:
    """A process that has handlers."""

    def __init__(self) -> None:
        context = with_torch_loaded()
        self._line: Connection
        self._line, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=serve_handlers, args=(theirs, ENVIRONMENT))
        self._process.start()
        theirs.close()

    async def ask(self, name: str, *arguments: object) -> Any:
        """The result of a method of `Handlers`. Raises what that raised, TimeoutError after 90 s."""
        self._line.send((name, *arguments))
        answered = await asyncio.to_thread(self._line.poll, ANSWER_TIMEOUT_S)
        if not answered:
            raise TimeoutError(f"{name} took more than {ANSWER_TIMEOUT_S:g} s")
        result = self._line.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        self._line.close()
        self._process.kill()
        self._process.join()


class Members:
    """Several such processes. Leaving kills them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._all: list[Member] = []

    async def __aenter__(self) -> Self:
        self._all = [Member() for _ in range(self._count)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self._all:
            member.close()

    async def form(self, backend: Backend, delays_s: Sequence[float]) -> float:
        """Seconds from the last call to the last return, if each handler joins after its delay."""
        place = backend.place()
        for member in self._all:
            await member.ask("open", [place.parameters(self._count)])
            await place.hosted()
        joined = await self._each("join", [[delay_s] for delay_s in delays_s])
        _check(joined)
        await self.leave()
        return max(one.returned for one in joined) - max(one.called for one in joined)

    async def come(self, place: Place, on_each: int) -> list[Joined]:
        """All join at once, `on_each` in each process, including the connection. They stay until `leave`."""
        parameters = [place.parameters(self._count * on_each)] * on_each
        joined = await self._each("come", [parameters] * self._count)
        _check(joined)
        return joined

    async def leave(self) -> None:
        """All end, the first one last: it may host what the others still need."""
        for member in reversed(self._all):
            await member.ask("leave")

    async def _each(self, name: str, arguments: Sequence[object]) -> list[Joined]:
        pairs = zip(self._all, arguments, strict=True)
        parts = await asyncio.gather(*(member.ask(name, argument) for member, argument in pairs))
        return [one for part in parts for one in part]


def _check(joined: Sequence[Joined]) -> None:
    ranks = sorted(one.rank for one in joined)
    if ranks != list(range(len(joined))) or {one.world_size for one in joined} != {len(joined)}:
        raise RuntimeError(f"{len(joined)} handlers did not form one rendezvous: ranks {ranks}")
