"""`python -m drills NAME ...`: each drill is a module with a `main` that takes the rest and returns the exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

DRILLS = {
    "sigterm": "a rank is told to end: all save at one step and leave",
    "torchrun": "the same under torchrun, with DataLoader workers",
    "midsave": "the rank that saves is killed: the newest committed checkpoint is whole on all ranks",
    "frozensaver": "the rank that saves is stopped beyond its lease: what it commits late is refused",
}


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in DRILLS:
        lines = [f"  {name:<12} {what}" for name, what in DRILLS.items()]
        sys.stderr.write("\n".join(["usage: python -m drills NAME --rounds N --seed S", *lines, ""]))
        return 2
    return int(importlib.import_module(f"drills.{arguments[0]}").main(arguments[1:]))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
