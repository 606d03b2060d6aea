"""The training as an observer sees it: which rank ran which step with which values.

Ranks in lockstep have a collective in every step: no rank finishes a step before every rank is in it. A rank that dies
loses its part in the step, or has given it already; its successor starts at the first step that the rank has no part
in. When no rank holds training state any more, the next ones resume from one checkpoint, the same for all. A run that
is restored to a checkpoint runs the steps after it again: a step is known by its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Place(NamedTuple):
    """A step of the training. `back` is the plan that took the run back to a checkpoint last, 0 before the first."""

    back: int
    step: int

    def __str__(self) -> str:
        return f"{self.step}" if not self.back else f"{self.step} after plan {self.back} took the run back"


class Training:
    """Raises AssertionError at the step that breaks the promise."""

    def __init__(self, world_size: int, *, lockstep: bool) -> None:
        self.lockstep = lockstep
        self.finished = Place(0, 0)
        self.started = dict.fromkeys(range(world_size), Place(0, 0))
        self.running: set[int] = set()
        self.left: set[int] = set()
        self.resume_at = 0
        """Where ranks resume that find no other rank running and no checkpoint; 0: right after the last finished
        step."""
        self._used: dict[Place, Mapping[str, Any]] = {}
        self._parts: dict[Place, set[int]] = {}

    def enter(self, rank: int, back: int, *, resumed: int | None = None, restored: int = 0) -> int:
        """A worker returns from `join`; returns the step it runs first. `resumed` is the step of its checkpoint,
        `restored` the step of the checkpoint that plan `back` restored."""
        if not self.running and not self.left:
            at = min(self.resume_at or self.finished.step + 1, self.finished.step + 1)
            self._rewind(Place(back, at if resumed is None else resumed + 1))
        elif back > self.started[rank].back:
            self.started[rank] = Place(back, restored)
        self.running.add(rank)
        return self.started[rank].step + 1

    def go_back(self, rank: int, place: Place) -> None:
        """The rank has loaded a checkpoint; `place` is the step it runs next."""
        self.started[rank] = place._replace(step=place.step - 1)

    def run(self, rank: int, place: Place, values: Mapping[str, Any]) -> None:
        used = self._used.setdefault(place, values)
        assert used == values, f"step {place} runs with {dict(values)} on rank {rank}, and with {dict(used)} on others"
        self._parts.setdefault(place, set()).add(rank)
        self.started[rank] = place

    def may_finish(self, place: Place) -> bool:
        return not self.lockstep or all(started >= place for started in self.started.values())

    def finish(self, place: Place) -> None:
        self.finished = max(self.finished, place)

    def skip_to(self, rank: int, place: Place) -> None:
        self.finished = self.started[rank] = place._replace(step=place.step - 1)

    def leave(self, rank: int) -> None:
        self.running.discard(rank)
        self.left.add(rank)

    def die(self, rank: int, inside: Place | None, *, lose_part: bool) -> None:
        """`inside`: the step that the worker was in."""
        self.running.discard(rank)
        if inside is None or self.finished >= inside or not lose_part:
            return
        self.started[rank] = inside._replace(step=inside.step - 1)
        self._parts[inside].discard(rank)
        if not self._parts[inside]:
            del self._used[inside]

    def _rewind(self, place: Place) -> None:
        self.finished = place._replace(step=place.step - 1)
        self.started = dict.fromkeys(self.started, self.finished)
        self._used.clear()
        self._parts.clear()
