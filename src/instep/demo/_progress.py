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

    Ranks report about once a second; between two reports the step is reckoned from the time of a step. `steps` is
    None for a training without end.
    """

    def __init__(self, client: Client, keys: Keys, steps: int | None, show: Callable[[Progress], None]) -> None:
        self.steps = steps
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
        ahead = int((time.monotonic() - at) / each_s) if step >= 0 and each_s else 0
        return step + ahead if self.steps is None else min(step + ahead, self.steps)

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

    async def reach(self, step: int, training: asyncio.Task[None]) -> None:
        """Wait until the ranks are about there, or the training has ended."""
        while self.step < step and not training.done():  # noqa: ASYNC110  # reckoned from the clock: there is no event
            await asyncio.sleep(_POLL_S)

    def _take(self, status: Status) -> None:
        self.status = status
        if status.steps is not None and status.steps.lowest > self._reported[0]:
            self._reported = (status.steps.lowest, time.monotonic())
            if "loss" in status.steps.metrics:
                self.losses.append(status.steps.metrics["loss"])
        if status.state == "ended" and self.steps is not None:
            self._reported = (self.steps, time.monotonic())
        known = {entry.plan for entry in self.entries}
        self.entries += [entry for entry in reversed(status.recent) if entry.plan not in known]
        self._show(self)
