"""The README's example: an optimizer with a schedule, bound and saved. It ends when lr is 0.02."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import torch

import instep
import instep.torch


class Hyper(instep.Hyperparameters):
    lr: float = 0.01


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    model = torch.nn.Linear(2, 1)
    with instep.join("gpt-a", Hyper) as run:
        opt = torch.optim.SGD(model.parameters(), lr=run.config.lr)
        sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100_000)
        instep.torch.bind(run, opt, lr="lr", scheduler=sched)
        ckpt = instep.torch.Checkpointer(run, sys.argv[2], model=model, optimizer=opt, scheduler=sched)
        start = ckpt.restore()
        say(event="joined", start=start, epoch=sched.last_epoch)
        for step in run.steps(10**9, start=start):
            opt.step()
            sched.step()
            time.sleep(0.01)
            if run.config.lr == 0.02:
                ckpt.save(step)
                say(event="done", step=step)
                break


if __name__ == "__main__":
    main()
