"""A trainer that reports when it begins and ceases to lead; it trains until it is killed.

Argument: seconds per step.
"""

from __future__ import annotations

import json
import sys
import time
from time import monotonic

import instep


def main() -> None:
    step_s = float(sys.argv[1])
    with instep.join("bench", timeout_s=60) as run:
        led: bool | None = None
        for _step in run.steps(2**60):
            if run.leads != led:
                led = run.leads
                print(json.dumps([led, monotonic()]), flush=True)
            time.sleep(step_s)


if __name__ == "__main__":
    main()
