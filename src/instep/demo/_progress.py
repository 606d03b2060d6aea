"""How far the training is, as its ranks report it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

from instep.control import Entry, Keys, Status, watch_status
from instep.errors import RunNotFound
from instep.etcd import Client

_POLL_S = 0.1


class Progress:
    """The newest status, and the step that the ranks must have reached by now.

    Ranks report about once a second; between two reports the step is reckoned from the time of a step.
    """

    def __init__(self, client: Client, keys: Keys, show: Callable[[Progress], None]) -> None:
        self.status: Status | None = None
        self.losses: list[float] = []
        self.entries: list[Entry] = []
        self._client = client
        self._keys = keys
        self._show = show
        self._reported = (-1, 0.0)

    @property
    def step(self) -> int:
        """About where the slowest rank is; -1 before the first step."""
        step, at = self._reported
        each_s = self.step_time_s
        return step + int((time.monotonic() - at) / each_s) if step >= 0 and each_s and self.trains else step

    @property
    def view(self) -> int:
        """Number of the view; 0 before the first."""
        return self.status.view.number if self.status and self.status.view else 0

    @property
    def trains(self) -> bool:
        return self.status is not None and self.status.state == "training"

    @property
    def step_time_s(self) -> float | None:
        steps = self.status.steps if self.status else None
        return steps.step_time_s if steps else None

    async def watch(self) -> None:
        """Follow the run until cancelled."""
        while True:
            try:
                async with aclosing(watch_status(self._client, self._keys, tick_s=0.5)) as statuses:
                    async for status in statuses:
                        self._take(status)
            except RunNotFound:
                await asyncio.sleep(_POLL_S)  # its first rank is on the way

    async def go_on(self, steps: int, training: asyncio.Task[None]) -> None:
        """Wait until the ranks have reported so many steps more, or the training has ended."""
        while self._reported[0] < 0 and not training.done():  # noqa: ASYNC110  # told by a status, once a second
            await asyncio.sleep(_POLL_S)
        until = self._reported[0] + steps
        while self._reported[0] < until and not training.done():  # noqa: ASYNC110  # the same
            await asyncio.sleep(_POLL_S)

    async def reach_view(self, number: int, training: asyncio.Task[None]) -> None:
        """Wait until that view trains, or the training has ended."""
        while not (self.view >= number and self.trains) and not training.done():  # noqa: ASYNC110  # told by a status
            await asyncio.sleep(_POLL_S)
        self._reported = (-1, 0.0)

    def _take(self, status: Status) -> None:
        self.status = status
        if status.steps is not None and status.steps.lowest > self._reported[0]:
            self._reported = (status.steps.lowest, time.monotonic())
            if "loss" in status.steps.metrics:
                self.losses.append(status.steps.metrics["loss"])
        known = {entry.plan for entry in self.entries}
        self.entries += [entry for entry in reversed(status.recent) if entry.plan not in known]
        self._show(self)
