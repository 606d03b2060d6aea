"""`python -m benchmarks.tuner.picture FILE.svg`: draws one real recovery.

Beside it: the same run without a tuner, and without the fault.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.tuner.faults import FAULTS
from benchmarks.tuner.simulation import Done, Pace, Simulation
from benchmarks.tuner.trials import fork_point

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 44, 40
AVERAGED = 4
"""Steps of one plotted value."""
COLORS = {"without the fault": "#8a8f98", "without a tuner": "#c8452f", "with the tuner": "#2166b5"}
Curve = list[tuple[float, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuner.picture", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--fault", default="gradient", choices=[case.name for case in FAULTS])
    parser.add_argument("--seed", type=int, default=2024)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    fault = next(case for case in FAULTS if case.name == options.fault)
    base = Simulation.of(fault.twin, options.seed, pace=Pace())
    base.run(fork_point(base.world))
    runs = {
        "without the fault": base.fork(fault.twin),
        "without a tuner": base.fork(fault, acts=False),
        "with the tuner": base.fork(fault),
    }
    for run in runs.values():
        run.run()
    curves = {name: _curve(run) for name, run in runs.items()}
    losses = {name: run.world.evaluate() for name, run in runs.items()}
    tuned = runs["with the tuner"]
    options.file.write_text(svg(fault.about, base.world.first, curves, losses, tuned.actions))
    for name, loss in losses.items():
        print(f"{name}: {loss:.3f} on held-out text, {len(runs[name].records)} steps")
    return 0


def _curve(run: Simulation) -> Curve:
    """Steps that were run, and the mean loss of a few."""
    losses = [record.loss for record in run.records]
    parts = [losses[at : at + AVERAGED] for at in range(0, len(losses) - AVERAGED + 1, AVERAGED)]
    return [(number * AVERAGED + AVERAGED / 2, math.fsum(part) / len(part)) for number, part in enumerate(parts)]


def svg(about: str, first: int, curves: dict[str, Curve], ends: dict[str, float], actions: Sequence[Done]) -> str:
    """The picture: steps that were run from left to right, the loss on a log scale."""
    finite = [loss for curve in curves.values() for _, loss in curve if math.isfinite(loss) and loss > 0]
    low, high = math.log(min(finite) * 0.95), math.log(max(finite) * 1.05)
    most = max(at for curve in curves.values() for at, _ in curve)

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / most

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log(loss)) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>Training loss: {about}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for value in (0.01, 0.1, 0.5, 1, 2, 3, 5, 10, 20, 50, 100):
        if low < math.log(value) < high:
            parts.append(_line(LEFT, y(value), WIDTH - RIGHT, y(value), "#e4e6ea"))
            parts.append(_text(LEFT - 8, y(value) + 4, f"{value:g}", "end"))
    for at in range(0, int(most) + 1, 100):
        parts.append(_text(x(at), HEIGHT - BOTTOM + 18, str(at), "middle"))
    parts.append(_text(WIDTH / 2, HEIGHT - 6, "steps that were run", "middle"))
    parts.append(_text(LEFT - 8, TOP - 10, "loss", "end"))
    parts += [
        _path([(x(at), y(loss)) for at, loss in curve if loss > 0], COLORS[name]) for name, curve in curves.items()
    ]
    parts += [
        _line(x(first), TOP, x(first), HEIGHT - BOTTOM, "#1d2025", "4 3"),
        _text(x(first) - 4, TOP + 12, "fault", "end"),
    ]
    for action in actions:
        parts.append(_line(x(action.gate), TOP, x(action.gate), HEIGHT - BOTTOM, COLORS["with the tuner"], "4 3"))
        parts.append(_text(x(action.gate) + 4, TOP + 12, _label(action), "start", COLORS["with the tuner"]))
    for number, (name, end) in enumerate(ends.items()):
        text = f"{name}: {end:.2f}" if math.isfinite(end) else f"{name}: broken"
        parts.append(
            _text(LEFT + number * 230, 16, f"{text} on held-out text" if not number else text, "start", COLORS[name])
        )
    return "\n".join([*parts, "</svg>", ""])


def _label(action: Done) -> str:
    did = action.kind.replace("_", " ")
    return (
        did
        if action.checkpoint is None
        else f"{did}: back to {action.checkpoint}, {action.skipped} batches passed over"
    )


def _path(points: Sequence[tuple[float, float]], color: str) -> str:
    steps = " ".join(f"{at:.1f},{height:.1f}" for at, height in points if math.isfinite(height))
    return f'<polyline points="{steps}" fill="none" stroke="{color}" stroke-width="1.5" stroke-linejoin="round"/>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str, dashes: str = "none") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-dasharray="{dashes}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str, color: str = "#3c4148") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{text}</text>'


if __name__ == "__main__":
    raise SystemExit(main())
