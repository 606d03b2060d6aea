"""What the ranks recorded about themselves during training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from instep.errors import InstepError

T = TypeVar("T")


@dataclass(slots=True)
class RankRecord:
    """One process of one rank, from start to end; it may have been killed."""

    rank: int
    view: int
    start: int = 0
    sha256: str = ""
    """Of its parameters at the start, restored or new."""
    used: dict[int, Mapping[str, float]] = field(default_factory=dict)
    """The values that each step's update used."""
    saved: dict[int, str] = field(default_factory=dict)
    """By step with a committed checkpoint: the sha256 of its parameters."""
    end: str | None = None
    """The sha256 of its parameters after the loop; None if it was killed."""
    stopped: str | None = None
    grpc: bool = False
    threads: tuple[str, ...] = ()

    @property
    def last_step(self) -> int:
        return max(self.used, default=-1)

    def first_step_with(self, name: str, value: float) -> int | None:
        return next((step for step in sorted(self.used) if self.used[step].get(name) == value), None)

    def take(self, facts: Mapping[str, Any]) -> None:
        """Adds one line of its file. Raises KeyError, TypeError or ValueError for an invalid line."""
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
class BaselineRecord:
    """One rank of the training without Instep. `used` has (step, lr) for each step where the lr changed."""

    rank: int
    used: tuple[tuple[int, float], ...]
    before: str
    after: str
    difference: float

    def first_step_with(self, lr: float) -> int | None:
        return next((step for step, value in self.used if value == lr), None)


def records_of(lines: Iterable[str]) -> tuple[RankRecord, ...]:
    """The records of all ranks, by view and rank. Raises InstepError for an invalid line."""
    records: dict[tuple[int, int], RankRecord] = {}

    def take(facts: Mapping[str, Any]) -> None:
        view, rank = int(facts["view"]), int(facts["rank"])
        records.setdefault((view, rank), RankRecord(rank=rank, view=view)).take(facts)

    for line in lines:
        _understood(line, take)
    return tuple(record for _, record in sorted(records.items()))


def read_records(folder: Path) -> tuple[RankRecord, ...]:
    """Reads the files of all ranks. Skips the last line of a killed rank if it is incomplete."""
    texts = (path.read_text() for path in sorted(folder.glob("rank-*.jsonl")))
    return records_of(line for text in texts for line in text.split("\n")[:-1])


def read_baseline(folder: Path) -> tuple[BaselineRecord, ...]:
    """The records of the ranks without Instep, by rank. The checks notice missing ones."""

    def parse(facts: Mapping[str, Any]) -> BaselineRecord:
        used = tuple((int(step), float(lr)) for step, lr in facts["used"])
        difference = float(facts["difference"])
        return BaselineRecord(int(facts["rank"]), used, str(facts["before"]), str(facts["after"]), difference)

    found = [_understood(path.read_text(), parse) for path in folder.glob("rank-*.json")]
    return tuple(sorted(found, key=lambda item: item.rank))


def _understood(text: str, parse: Callable[[Any], T]) -> T:
    try:
        return parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InstepError(f"a rank's records cannot be read ({error!r}): {text[:80]!r}") from None
