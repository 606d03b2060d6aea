"""`make drills`: one promise at a time, broken as many times, and in as many ways, as there are rounds.

`python -m chaos drill NAME --rounds N --seed S` prints a line for each round and a verdict, and exits with 0 if every
round held.

Repeatable: which rank is hit, how and when. Not repeatable: what real processes and a real etcd do meanwhile.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

DRILLS = {
    "sigterm": "a rank gets SIGTERM: all save in one step and leave",
    "torchrun": "the same under torchrun, with DataLoader workers",
    "midsave": "the rank that saves is killed: the newest committed checkpoint is whole on all ranks",
    "frozensaver": "the rank that saves is stopped beyond its lease: what it commits late is refused",
}


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in DRILLS:
        lines = [f"  {name:<12} {what}" for name, what in DRILLS.items()]
        sys.stderr.write("\n".join(["usage: python -m chaos drill NAME --rounds N --seed S", *lines, ""]))
        return 2
    return int(importlib.import_module(f"chaos.drills.{arguments[0]}").main(arguments[1:]))
