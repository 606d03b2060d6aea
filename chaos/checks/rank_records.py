"""What each process of a rank did, from the files it wrote."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.harness.step_log import StepStart, read_step_log


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process of `rank`, which joined in `view` and began with step `first`.

    `steps` are the steps that it began, ascending, and `times` when it began them (monotonic seconds)."""

    rank: int
    life: int
    view: int
    first: int
    steps: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    requested: set[int] = field(default_factory=set)
    """The steps in which it was asked for a checkpoint; recorded before the step counts as begun."""
    acted: Counter[int] = field(default_factory=Counter)
    """How often it ran the action, by the step that followed."""
    saved: list[Mapping[str, Any]] = field(default_factory=list)
    """The outcomes of the checkpoints that it saved."""

    def __str__(self) -> str:
        return f"rank {self.rank} (life {self.life}, view {self.view})"

    def began(self, step: int) -> bool:
        place = bisect_left(self.steps, step)
        return place < len(self.steps) and self.steps[place] == step

    def first_from(self, step: int) -> tuple[int, float] | None:
        """The first step at or after `step` that it began, and when."""
        place = bisect_left(self.steps, step)
        return (self.steps[place], self.times[place]) if place < len(self.steps) else None


def process_records(lines: Iterable[Mapping[str, Any]], begun: Iterable[StepStart]) -> Iterator[ProcessRecord]:
    """The processes of one rank, without those that never joined."""
    found: dict[int, ProcessRecord] = {}
    for line in lines:
        if line["event"] == "joined":
            found[line["life"]] = ProcessRecord(line["rank"], line["life"], line["view"], line["step"])
        elif line["event"] == "requested":
            found[line["life"]].requested.add(line["step"])
        elif line["event"] == "acted":
            found[line["life"]].acted[line["step"]] += 1
        elif line["event"] == "saved":
            found[line["life"]].saved.append(line)
    for began in begun:
        found[began.life].steps.append(began.step)
        found[began.life].times.append(began.at)
    yield from found.values()


def read_process_records(records: Path, begun: Path) -> list[ProcessRecord]:
    lines = records.read_text().splitlines() if records.exists() else []
    return list(process_records(map(json.loads, lines), read_step_log(begun)))
