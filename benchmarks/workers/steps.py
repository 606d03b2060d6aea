"""A trainer with a fixed step time that reports when each change was applied, until `last` is set.

Arguments: seconds per step; `sleep` (a trainer that waits for its accelerator) or `spin` (it keeps its core busy).
The ranks follow one clock, as with the collectives of data-parallel training: a late rank catches up.
"""

from __future__ import annotations

import json
import sys
import time
from time import monotonic

import instep


class Hyper(instep.Hyperparameters):
    lr: float = 3e-4
    last: bool = False


def main() -> None:
    step_s, spins = float(sys.argv[1]), sys.argv[2] == "spin"
    with instep.join("bench", Hyper, timeout_s=60) as run:

        @run.on_change
        def tell(_old: Hyper, new: Hyper) -> None:
            print(json.dumps([new.lr, monotonic()]), flush=True)

        print(json.dumps("joined"), flush=True)
        start = json.loads(sys.stdin.readline())
        for step in run.steps(2**60):
            if run.config.last:
                break
            _pass_time(start + (step + 1) * step_s, spins=spins)


def _pass_time(until: float, *, spins: bool) -> None:
    if spins:
        while monotonic() < until:
            pass
    else:
        time.sleep(max(0.0, until - monotonic()))


if __name__ == "__main__":
    main()
