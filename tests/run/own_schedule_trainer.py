"""Writes its own lr into the optimizer in each step, as nanoGPT does, although lr is bound. Ends when lr is 0.02."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import torch

import instep
import instep.torch


class Hyper(instep.Hyperparameters):
    lr: float = 0.01
    wd: float = 0.0
    end: bool = False


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    logging.basicConfig(format="%(levelname)s %(message)s")
    with instep.join("gpt-a", Hyper) as run:
        opt = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=run.config.lr)
        instep.torch.bind(run, opt, lr="lr", weight_decay="wd")
        say(event="joined")
        for step in run.steps(10**9):
            for group in opt.param_groups:
                group["lr"] = 0.5 / (1 + step)
            opt.step()
            time.sleep(0.01)
            if run.config.end:
                break


if __name__ == "__main__":
    main()
