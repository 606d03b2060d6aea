"""The checkpoints of a simulated run, kept as Instep keeps them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from benchmarks.tuner.model import State

KEEP = 3
"""Instep's default."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A restore of it continues with the step after `step`."""

    id: str
    step: int
    state: State


class Checkpoints:
    """The last `KEEP` ones of the run's line, then those that were left behind when the run went back."""

    def __init__(self, line: Collection[Saved] = (), left: Collection[Saved] = ()) -> None:
        self._line = list(line)
        self._left = list(left)
        self._count = len(self._line)

    def copy(self) -> Checkpoints:
        other = Checkpoints(self._line, self._left)
        other._count = self._count
        return other

    @property
    def newest(self) -> Saved:
        """The one from which the run would resume."""
        return self._line[-1]

    @property
    def all(self) -> list[Saved]:
        """By step."""
        return sorted((*self._line, *self._left), key=lambda saved: saved.step)

    def save(self, step: int, state: State, pinned: Collection[str]) -> None:
        """Adds one, and drops what is beyond the last ones and not pinned."""
        self._count += 1
        self._line.append(Saved(f"{step}-{self._count}", step, state))
        dropped = {saved.id for saved in [*reversed(self._line), *reversed(self._left)][KEEP:]} - set(pinned)
        self._line = [saved for saved in self._line if saved.id not in dropped]
        self._left = [saved for saved in self._left if saved.id not in dropped]

    def go_back(self, name: str) -> Saved:
        """Makes it the newest of the line."""
        found = next(saved for saved in self.all if saved.id == name)
        self._left += [saved for saved in self._line if saved.step > found.step]
        self._line = [saved for saved in self._line if saved.step < found.step] + [found]
        self._left = [saved for saved in self._left if saved.id != name]
        return found

    def damage_newest(self, state: State) -> None:
        """Replaces what the newest one holds."""
        self._line[-1] = replace(self._line[-1], state=state)
