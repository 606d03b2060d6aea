"""What the trials have shown, as text and as JSON. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.figures import short
from benchmarks.tuner.trials import NEAR, TUNER, FaultTrial, HealthyTrial

RECOVERED = 0.95
"""The share of the faulty runs that must end near their twins."""


@dataclass(frozen=True, slots=True)
class Results:
    """All trials of one run of the benchmark."""

    master_seed: int
    step_time_s: float
    seconds: float
    faults: tuple[FaultTrial, ...]
    healthy: tuple[HealthyTrial, ...]

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What was promised and not reached."""
        found = []
        if self.faults:
            share = sum(trial.recovered for trial in self.faults) / len(self.faults)
            if share < RECOVERED:
                found.append(f"{share:.1%} of the faulty runs recovered: {RECOVERED:.0%} were promised")
        for fault, trials in _grouped(self.faults, "fault").items():
            if statistics.median(len(trial.actions) for trial in trials) > 1:
                found.append(f"{fault}: more than one action at the median")
        acted = [trial for trial in self.healthy if trial.actions]
        if acted:
            found.append(f"{len(acted)} of {len(self.healthy)} healthy runs were changed: none may be")
        return tuple(found)

    def document(self) -> dict[str, Any]:
        """For a JSON file. Numbers that are not finite are null."""
        document: dict[str, Any] = _finite({**asdict(self), "shortfalls": self.shortfalls})
        return document


def text(results: Results, about: Mapping[str, str]) -> str:
    parts = [
        f"seed {results.master_seed}: {len(results.faults)} faulty and {len(results.healthy)} healthy runs, "
        f"steps of {short(results.step_time_s)} s, {results.seconds:.0f} s in all"
    ]
    if results.faults:
        parts += [_recoveries(results.faults, about), _delays(results), _failures(results.faults)]
    if results.healthy:
        parts.append(_healthy(results.healthy, about))
    parts.append(
        "\n".join(f"NOT REACHED: {item}" for item in results.shortfalls) or "all that was promised was reached"
    )
    return "\n\n".join(part for part in parts if part)


def _recoveries(trials: Sequence[FaultTrial], about: Mapping[str, str]) -> str:
    head = (
        "fault",
        "recovered",
        "actions",
        "extra steps",
        "off the twin, median",
        "worst",
        "without tuner",
        "what it is",
    )
    rows: list[tuple[str, ...]] = []
    for fault, group in _grouped(trials, "fault").items():
        off = [trial.treated - trial.twin for trial in group]
        actions = [len(trial.actions) for trial in group]
        rows.append(
            (
                fault,
                f"{sum(trial.recovered for trial in group)}/{len(group)}",
                f"{short(statistics.median(actions))}, at most {max(actions)}",
                short(statistics.median(trial.extra_steps for trial in group)),
                _nats(statistics.median(off)),
                _nats(max(off)),
                _nats(statistics.median(trial.untreated - trial.twin for trial in group)),
                about.get(fault, ""),
            )
        )
    done = sum(trial.recovered for trial in trials)
    rows.append(("all", f"{done}/{len(trials)}", *[""] * 6))
    return f"Recovery: within {NEAR} nats of the twin, without a person\n" + _table(head, rows)


def _delays(results: Results) -> str:
    """Found faults, median delays and false alarms, by detector."""
    detectors = [TUNER, *(name for name in results.faults[0].delays if name != TUNER)]
    steps = sum(trial.steps for trial in results.healthy)
    rows = []
    for name in detectors:
        delays = [trial.delays[name] for trial in results.faults]
        found = [delay for delay in delays if delay is not None]
        row = [name, f"{len(found)}/{len(delays)}", short(statistics.median(found)) if found else "-"]
        if name == TUNER:
            counts = [sum(firing.rule != "grad" for firing in trial.firings) for trial in results.healthy]
        else:
            counts = [trial.alarms[name] for trial in results.healthy]
        row += [
            f"{1e4 * sum(counts) / steps:.1f}" if steps else "-",
            f"{sum(map(bool, counts))}/{len(counts)}" if counts else "-",
        ]
        for group in _grouped(results.faults, "fault").values():
            of_fault = [trial.delays[name] for trial in group]
            known = [delay for delay in of_fault if delay is not None]
            lost = len(of_fault) - len(known)
            row.append((short(statistics.median(known)) if known else "-") + (f" (-{lost})" if lost and known else ""))
        rows.append(tuple(row))
    head = ("detector", "found", "delay", "alarms/10k", "runs", *_grouped(results.faults, "fault"))
    return (
        "Detection without action: steps from the fault to the alarm, at the median (-n: not found in n runs); "
        "alarms in healthy runs\n" + _table(head, rows)
    )


def _failures(trials: Sequence[FaultTrial]) -> str:
    lines = []
    for trial in trials:
        if trial.recovered:
            continue
        did = "; ".join(
            f"{done.kind} by {done.rule} at {done.gate}, to {done.checkpoint}, skipping {done.skipped}"
            for done in trial.actions
        )
        lines.append(
            f"{trial.fault} with seed {trial.seed}, fault at {trial.first}: {_nats(trial.treated - trial.twin)}"
            f"{', paused' if trial.paused else ''}; {did or 'no action'}"
        )
    return "Not recovered\n" + "\n".join(lines) if lines else ""


def _healthy(trials: Sequence[HealthyTrial], about: Mapping[str, str]) -> str:
    rows = []
    for kind, group in _grouped(trials, "kind").items():
        fired = Counter(firing.rule for trial in group for firing in trial.firings if firing.rule != "grad")
        rows.append(
            (
                kind,
                str(len(group)),
                str(sum(len(trial.actions) for trial in group)),
                ", ".join(f"{rule} {count}" for rule, count in fired.items()),
                " ".join(str(trial.seed) for trial in group if trial.actions),
                about.get(kind, ""),
            )
        )
    head = ("healthy kind", "runs", "actions", "alerts", "seeds with actions", "what it is")
    return _table(head, rows)


def _grouped(trials: Iterable[Any], name: str) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for trial in trials:
        groups.setdefault(getattr(trial, name), []).append(trial)
    return groups


def _nats(value: float) -> str:
    return f"{value:+.3f}" if math.isfinite(value) else "broken"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    everything = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in everything) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in everything
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {name: _finite(item) for name, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
