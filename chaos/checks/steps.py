"""What the ranks ran, from their records: ranges of steps with equal values. Pure except for reading the files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.checks.run_history import RunHistory
from instep.scalar import Scalar

MAX_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class StepRun:
    """A rank ran the steps from `first` to `last` with `values`; `life` counts its processes, `epoch` fresh starts."""

    rank: int
    epoch: int
    life: int
    view: int
    first: int
    last: int
    values: Mapping[str, Scalar]


def read_runs(path: Path, last_steps: Mapping[int, int]) -> Iterator[StepRun]:
    """The runs of one rank. `last_steps` has the last step of each process, which a killed one could not record."""
    open_line: dict[str, Any] | None = None
    for line in map(json.loads, path.read_text().splitlines()):
        if open_line is not None and line["event"] in ("runs", "done", "joined", "error"):
            same_life = line["life"] == open_line["life"]
            ended = line["event"] != "runs"
            last = line.get("step", 0) - (not ended) if same_life else last_steps.get(open_line["life"], 0)
            yield _run(open_line, last)
            open_line = None
        if line["event"] == "runs":
            open_line = line
    if open_line is not None:
        yield _run(open_line, last_steps.get(open_line["life"], 0))


def _run(line: Mapping[str, Any], last: int) -> StepRun:
    """A recorded step was begun: it counts as run, although its rank may have died in it."""
    first = line["step"]
    return StepRun(line["rank"], line["epoch"], line["life"], line["view"], first, max(first, last), line["values"])


def against_history(runs: Iterable[StepRun], history: RunHistory) -> tuple[int, list[str]]:
    """Checks that each step ran with the values of etcd's history. Returns how many steps were compared, and a
    sentence for each run that differs, the first fifty."""
    steps, problems = 0, []
    for run in runs:
        steps += run.last - run.first + 1
        span = history.span_of(run.view)
        if span is None:
            problems.append(f"rank {run.rank} ran step {run.first} in view {run.view}, which was never formed")
        elif dict(span.at(run.first)) != dict(run.values):
            problems.append(f"{run} differs from what was agreed for step {run.first}: {dict(span.at(run.first))}")
        elif (until := span.until(run.first)) < run.last and dict(span.at(until + 1)) != dict(run.values):
            problems.append(f"{run} continues beyond step {until}, where the values change")
    return steps, problems[:MAX_PROBLEMS]


def at_the_end(runs: Sequence[StepRun], wanted: Mapping[str, Scalar], world_size: int) -> list[str]:
    """A sentence for each rank whose last values are not the desired ones."""
    last = {run.rank: run for run in runs}
    return [
        f"rank {rank} ended with {dict(last[rank].values) if rank in last else 'nothing'}"
        for rank in range(world_size)
        if rank not in last or dict(last[rank].values) != dict(wanted)
    ]
