"""Times step boundaries with nothing pending, an empty loop, and a broadcast of an object in every step.

The three alternate in one process, so other load on the machine affects all of them equally.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from time import perf_counter

import torch.distributed as dist

import instep

CALLS = 1000
BROADCASTS = 20


class Hyper(instep.Hyperparameters):
    lr: float = 3e-4
    clip: float = 1.0


def main() -> None:
    rounds, store = int(sys.argv[1]), Path(sys.argv[2])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    try:
        with instep.join("bench", Hyper, timeout_s=60) as run:
            figures = _measure(run, rounds)
    finally:
        dist.destroy_process_group()
    print(json.dumps(figures), flush=True)


def _measure(run: instep.Run[Hyper], rounds: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {"boundary": [], "asking": [], "loop": [], "broadcast": []}
    for index in range(rounds + 2):
        dist.barrier()
        batch = {
            "boundary": _boundaries(run, 2 * index * CALLS),
            "asking": _asking_boundaries(run, (2 * index + 1) * CALLS),
            "loop": _empty_loop(index * CALLS),
            "broadcast": _broadcasts(),
        }
        if index >= 2:  # the first two warm the caches
            for name, seconds in batch.items():
                figures[name].append(seconds)
    return figures


def _asking_boundaries(run: instep.Run[Hyper], first: int) -> float:
    """Like a script that saves: checks after each boundary whether it leads and whether a checkpoint is requested."""
    saves = 0
    began = perf_counter()
    for step in range(first, first + CALLS):
        run.boundary(step)
        saves += run.leads and run.checkpoint_requested
        saves += run.checkpoint_requested
    took_s = perf_counter() - began
    assert saves == 0, "no checkpoint was requested"
    return took_s / CALLS


def _boundaries(run: instep.Run[Hyper], first: int) -> float:
    began = perf_counter()
    for step in range(first, first + CALLS):
        run.boundary(step)
    return (perf_counter() - began) / CALLS


def _empty_loop(first: int) -> float:
    began = perf_counter()
    for _step in range(first, first + CALLS):
        pass
    return (perf_counter() - began) / CALLS


def _broadcasts() -> float:
    began = perf_counter()
    for _ in range(BROADCASTS):
        dist.broadcast_object_list([{"lr": 3e-4, "clip": 1.0}], src=0)
    return (perf_counter() - began) / BROADCASTS


if __name__ == "__main__":
    main()
