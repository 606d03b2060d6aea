"""What torchrun runs in the test of steering: gloo, and `instep.join` as the README has it.

Arguments: FOLDER
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from elastic_worker import Voice, place_of
from pydantic import Field

import instep

RUN = "steered"


class Hyper(instep.Hyperparameters):
    lr: float = Field(0.1, gt=0)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    place = place_of(os.environ)
    voice = Voice(folder / f"{os.environ['TEST_NODE']}.said", place)
    voice.say("start")
    dist.init_process_group("gloo")
    with instep.join(RUN, Hyper, timeout_s=60) as run:
        step, stop = 0, torch.zeros(1)
        while not stop.item():
            run.boundary(step)
            if run.stopped is not None:
                voice.say("stopped", step=step)
                break
            used = torch.tensor([run.config.lr, -run.config.lr], dtype=torch.float64)
            dist.all_reduce(used, dist.ReduceOp.MAX)
            assert used[0] == -used[1], f"step {step} was run with {used}"
            voice.say("trains", step=step, lr=run.config.lr)
            stop[0] = float((folder / "stop").exists())
            dist.broadcast(stop, 0)
            step += 1
            time.sleep(0.02)
    voice.say("done", step=step)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
