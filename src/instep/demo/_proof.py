"""What the ranks wrote down about themselves while they trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from instep.errors import InstepError

T = TypeVar("T")


@dataclass(slots=True)
class Life:
    """One process of one rank, from its start to its end; it may have been killed."""

    rank: int
    view: int
    start: int = 0
    sha256: str = ""
    """Of its parameters when it started, restored from a checkpoint or fresh."""
    used: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """By step, the values that its update used."""
    saved: dict[int, str] = field(default_factory=dict)
    """By step, the sha256 of its parameters when that step's checkpoint was committed."""
    end: str | None = None
    """The sha256 of its parameters when its loop ended; None for one that was killed."""
    stopped: str | None = None
    grpc: bool = False
    threads: tuple[str, ...] = ()

    @property
    def last_step(self) -> int:
        return max(self.used, default=-1)

    def first_step_with(self, name: str, value: float) -> int | None:
        return next((step for step in sorted(self.used) if self.used[step].get(name) == value), None)

    def take(self, facts: Mapping[str, Any]) -> None:
        """One line of its notes. Raises KeyError, TypeError or ValueError for what is none."""
        if "start" in facts:
            self.start, self.sha256 = int(facts["start"]), str(facts["sha256"])
        elif "step" in facts:
            self.used[int(facts["step"])] = dict(facts["used"])
        elif facts.get("saved") is not None:
            self.saved[int(facts["saved"])] = str(facts["sha256"])
        elif "end" in facts:
            self.end, self.stopped, self.grpc = str(facts["end"]), facts["stopped"], bool(facts["grpc"])
            self.threads = tuple(facts["threads"])


@dataclass(frozen=True, slots=True)
class Alone:
    """One rank of the training without Instep. `used` holds (step, lr) wherever that differs from the step before."""

    rank: int
    used: tuple[tuple[int, float], ...]
    before: str
    after: str
    difference: float

    def first_step_with(self, lr: float) -> int | None:
        return next((step for step, value in self.used if value == lr), None)


def lives_of(lines: Iterable[str]) -> tuple[Life, ...]:
    """From the notes of all ranks, by view and rank. Raises InstepError for a line that is none."""
    lives: dict[tuple[int, int], Life] = {}

    def take(facts: Mapping[str, Any]) -> None:
        view, rank = int(facts["view"]), int(facts["rank"])
        lives.setdefault((view, rank), Life(rank=rank, view=view)).take(facts)

    for line in lines:
        _understood(line, take)
    return tuple(life for _, life in sorted(lives.items()))


def read_lives(folder: Path) -> tuple[Life, ...]:
    """A rank that was killed may have left half a line."""
    texts = (path.read_text() for path in sorted(folder.glob("rank-*.jsonl")))
    return lives_of(line for text in texts for line in text.split("\n")[:-1])


def read_alone(folder: Path) -> tuple[Alone, ...]:
    """By rank; those that are missing are for the checks to notice."""

    def parse(facts: Mapping[str, Any]) -> Alone:
        used = tuple((int(step), float(lr)) for step, lr in facts["used"])
        return Alone(int(facts["rank"]), used, str(facts["before"]), str(facts["after"]), float(facts["difference"]))

    found = [_understood(path.read_text(), parse) for path in folder.glob("rank-*.json")]
    return tuple(sorted(found, key=lambda item: item.rank))


def _understood(text: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InstepError(f"a rank's notes cannot be read ({error!r}): {text[:80]!r}") from None
