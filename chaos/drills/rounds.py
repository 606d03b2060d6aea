"""Runs a drill round after round: a line for each, the folder of a failed one, and the verdict."""

from __future__ import annotations

import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from chaos.drills.testbed import Failed, new_folder
from chaos.options import DrillOptions


class Drill(Protocol):
    """Each call raises Failed for what must not be."""

    async def begin(self) -> None: ...

    async def round(self, number: int) -> str:
        """What was done, and what came of it."""

    async def finish(self) -> str: ...


Place = TypeVar("Place")


async def perform(
    options: DrillOptions,
    place: Callable[[Path], AbstractAsyncContextManager[Place]],
    make: Callable[[Place], Drill],
) -> int:
    """0 when every round held. A drill stops at its first failure: the state of its processes is unknown then."""
    folder = new_folder()
    say(f"{options.drill}: {options.command}")
    began, held, failure = time.monotonic(), 0, ""
    try:
        async with place(folder) as testbed:
            drill = make(testbed)
            await drill.begin()
            for number in range(1, options.rounds + 1):
                started = time.monotonic()
                text = await drill.round(number)
                held = number
                say(f"round {number:>3}  {time.monotonic() - started:4.1f} s  {text}")
            say(await drill.finish())
    except Exception as error:  # noqa: BLE001  # no error may pass for success
        failure = str(error) if isinstance(error, Failed) else traceback.format_exc()
        say(f"round {held + 1:>3}  FAILED: {failure}\nlogs and saves: {folder}")
    if not failure and not options.keep:
        shutil.rmtree(folder)
    verdict = "BROKEN" if failure else "held"
    say(f"{options.drill}: {verdict}, {held} of {options.rounds} rounds in {time.monotonic() - began:.0f} s")
    return 1 if failure else 0


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
