"""`python -m benchmarks`: measures, prints a table, and exits with 1 if a target is missed."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from benchmarks import boundary, change, client, idle, machine, page, recovery, rendezvous, takeover, weight
from benchmarks.figures import Figure

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
DISTURBED = 0.3

Measure = Callable[..., Awaitable[list[Figure]]]
MEASURES: Mapping[str, Measure] = {
    "boundary": boundary.measure,
    "weight": weight.measure,
    "change": change.measure,
    "client": client.measure,
    "idle": idle.measure,
    "recovery": recovery.measure,
    "takeover": takeover.measure,
    "rendezvous": rendezvous.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    facts = {**machine.facts(), "load at the start": f"{machine.load():.1f} a core"}
    if machine.load() > DISTURBED:
        print(f"this machine is busy ({machine.load():.1f} processes a core): figures will be worse", file=sys.stderr)
    figures = asyncio.run(_measure(options.only or list(MEASURES), quick=options.quick))
    print(page.table(figures))
    if options.json:
        document = {"machine": facts, "figures": [{**asdict(figure), "met": figure.met} for figure in figures]}
        options.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    if options.write:
        PAGE.write_text(page.replaced(PAGE.read_text(), page.markdown(figures, facts)))
    missed = [figure.measure for figure in figures if not figure.met]
    for name in missed:
        print(f"target missed: {name}", file=sys.stderr)
    return 1 if missed else 0


async def _measure(names: Sequence[str], *, quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    for name in names:
        began = monotonic()
        figures += await MEASURES[name](quick=quick)
        print(f"{name}: {monotonic() - began:.0f} s", file=sys.stderr)
    return figures


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", choices=[*MEASURES, []], help="which to run; all without")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as JSON")
    parser.add_argument("--write", action="store_true", help="write the table into docs/benchmarks.md")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
