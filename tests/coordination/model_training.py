"""The training as an observer sees it: which rank ran which step with which values.

Ranks in lockstep have a collective in every step: nobody comes out before everybody is in. A rank that dies loses its
part in the step, or has given it already; its successor starts at the first step that the rank has no part in. When
nobody is left who holds training state, the next ones resume from some checkpoint, all from the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Training:
    """Raises AssertionError at the step that breaks the promise."""

    def __init__(self, world_size: int, *, lockstep: bool) -> None:
        self.lockstep = lockstep
        self.finished = 0
        self.started = dict.fromkeys(range(world_size), 0)
        self.running: set[int] = set()
        self.left: set[int] = set()
        self.resume_at = 0
        """Where those resume who find nobody running; 0: right after the last finished step."""
        self._used: dict[int, Mapping[str, Any]] = {}
        self._parts: dict[int, set[int]] = {}

    def enter(self, rank: int) -> int:
        """A worker comes out of `join`; returns the step it runs first."""
        if not self.running and not self.left:
            self._rewind(min(self.resume_at or self.finished + 1, self.finished + 1))
        self.running.add(rank)
        return self.started[rank] + 1

    def run(self, rank: int, step: int, values: Mapping[str, Any]) -> None:
        used = self._used.setdefault(step, values)
        assert used == values, f"step {step} runs with {dict(values)} on rank {rank}, and with {dict(used)} on others"
        self._parts.setdefault(step, set()).add(rank)
        self.started[rank] = step

    def may_finish(self, step: int) -> bool:
        return not self.lockstep or all(started >= step for started in self.started.values())

    def finish(self, step: int) -> None:
        self.finished = max(self.finished, step)

    def leave(self, rank: int) -> None:
        self.running.discard(rank)
        self.left.add(rank)

    def die(self, rank: int, inside: int | None, *, lose_part: bool) -> None:
        """`inside`: the step that the worker was in."""
        self.running.discard(rank)
        if inside is None or self.finished >= inside or not lose_part:
            return
        self.started[rank] = inside - 1
        self._parts[inside].discard(rank)
        if not self._parts[inside]:
            del self._used[inside]

    def _rewind(self, step: int) -> None:
        self.finished = step - 1
        self.started = dict.fromkeys(self.started, step - 1)
        self._used.clear()
        self._parts.clear()
