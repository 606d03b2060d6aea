"""A worker that lives but has not met this agent yet: its former agent died, and it passes no boundary just now."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from instep.agent.ending import how_it_ended
from instep.wire.frames import Words
from instep.wire.messages import FromAgent


class DisconnectedWorker:
    """Stands where its connection will be. What is told to it is dropped: it hears where things stand when it comes.

    Promise: `on_died` is called when its process ends, also one that ended before this was made.
    """

    words: Words | None = None
    ending: str | None = None
    """How its process ended, where that can be told."""

    def __init__(self, pid: int, on_died: Callable[[DisconnectedWorker], None]) -> None:
        self.pid = pid
        self._on_died = on_died
        self._loop = asyncio.get_running_loop()
        self._pidfd = -1
        self._closed = False
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            self._loop.call_soon(self._died)
        else:
            self._loop.add_reader(self._pidfd, self._died)

    def __repr__(self) -> str:
        return f"DisconnectedWorker(pid {self.pid}{', closed' if self._closed else ''})"

    @property
    def closed(self) -> bool:
        return self._closed

    def send(self, message: FromAgent) -> None:
        """Nobody is there to hear it."""

    def close(self) -> None:
        self._closed = True
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _died(self) -> None:
        if not self._closed:
            self.ending = how_it_ended(self.pid, self._pidfd)
            self.close()
            self._on_died(self)
