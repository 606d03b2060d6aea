"""Runs a drill round by round: prints a line for each round, and the result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from chaos.drills.testbed import new_folder
from chaos.options import DrillOptions, failure_of, parse_drill, say


class Drill(Protocol):
    """Each call raises Failed when a promise is broken."""

    async def begin(self) -> None: ...

    async def round(self, number: int) -> str:
        """Returns what was done, and the outcome."""

    async def finish(self) -> str: ...


Bed = TypeVar("Bed")


def run_drill(
    name: str,
    description: str | None,
    rounds: int,
    arguments: Sequence[str],
    testbed: Callable[[DrillOptions, Path], AbstractAsyncContextManager[Bed]],
    make: Callable[[Bed], Drill],
) -> int:
    """The exit code: 0 when every round held. `rounds`: how many by default."""
    options = parse_drill(name, description or "", arguments, rounds=rounds)
    return asyncio.run(_perform(options, testbed, make))


async def _perform(
    options: DrillOptions,
    testbed: Callable[[DrillOptions, Path], AbstractAsyncContextManager[Bed]],
    make: Callable[[Bed], Drill],
) -> int:
    """A drill stops at its first failure, because the state of its processes is then unknown."""
    folder = new_folder()
    say(f"{options.drill}: {options.command}")
    began, held, failure = time.monotonic(), 0, ""
    try:
        async with testbed(options, folder) as bed:
            drill = make(bed)
            await drill.begin()
            for number in range(1, options.rounds + 1):
                started = time.monotonic()
                text = await drill.round(number)
                held = number
                say(f"round {number:>3}  {time.monotonic() - started:4.1f} s  {text}")
            say(await drill.finish())
    except Exception as error:  # noqa: BLE001  # no error may pass for success
        failure = failure_of(error)
        say(f"round {held + 1:>3}  FAILED: {failure}")
    verdict = "BROKEN" if failure else "held"
    say(f"{options.drill}: {verdict}, {held} of {options.rounds} rounds in {time.monotonic() - began:.0f} s")
    return options.conclude(folder, passed=not failure)
