"""`make drills`: repeats one failure, in another way each round, and checks one promise.

`python -m chaos drill NAME --rounds N --seed S` prints a line for each round and the result, and exits with 0 if every
round held.

Repeatable: which rank is hit, how and when. Not repeatable: what real processes and a real etcd do at that time.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

DRILLS = {
    "sigterm": "a rank gets SIGTERM: all ranks save in the same step and leave",
    "torchrun": "the same under torchrun, with DataLoader workers",
    "midsave": "the saver is killed during a save: all ranks resume from the newest committed checkpoint",
    "frozensaver": "the saver is frozen beyond its lease: its late commit is refused",
}


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in DRILLS:
        lines = [f"  {name:<12} {what}" for name, what in DRILLS.items()]
        sys.stderr.write("\n".join(["usage: python -m chaos drill NAME --rounds N --seed S", *lines, ""]))
        return 2
    return int(importlib.import_module(f"chaos.drills.{arguments[0]}").main(arguments[1:]))
