"""Ranks of DistributedDataParallel that are steered live or replay a schedule; for the tests."""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import Field
from torch.nn.parallel import DistributedDataParallel

import instep
import instep.torch

LOOK_EVERY = 20
"""Steps after which the ranks look together whether they are to stop."""


class Hyper(instep.Hyperparameters):
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    clip: float = Field(10.0, gt=0)


def say(**event: object) -> None:
    """One write, newline included: the ranks share a pipe, and print would write twice."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stop-file", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--step-s", type=float, default=0.0)
    parser.add_argument("--replay")
    parser.add_argument("--checkpoints")
    parser.add_argument("--save-every", type=int, default=10**9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(
        torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    )
    with instep.join("ddp", Hyper, timeout_s=60, replay=options.replay) as run:
        optimizer = torch.optim.SGD(model.parameters(), lr=run.config.lr, momentum=run.config.momentum)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 100))
        binding = instep.torch.bind(run, optimizer, lr="lr", momentum="momentum", scheduler=scheduler)
        say(event="joined", rank=rank, config=dict(run.config))
        train(run, model, optimizer, scheduler, options)
    del model, optimizer, scheduler, binding
    gc.collect()  # DistributedDataParallel must go before its process group, or gloo may abort at exit
    dist.destroy_process_group()


def train(
    run: instep.Run[Hyper],
    model: DistributedDataParallel,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    options: argparse.Namespace,
) -> None:
    saver, start = None, 0
    if options.checkpoints:
        parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        saver = instep.torch.Checkpointer(run, options.checkpoints, **parts)
        start = saver.restore()
    step = start
    seen: dict[str, object] = {}
    for step in run.steps(options.steps, start=start):
        if dict(run.config) != seen:
            seen = dict(run.config)
            say(event="config", rank=run.rank, step=step, config=seen)
        data = torch.Generator().manual_seed(2 * step + run.rank)
        x, y = torch.randn(32, 8, generator=data), torch.randn(32, 1, generator=data)
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.config.clip)
        optimizer.step()
        scheduler.step()
        run.report(loss=loss)
        time.sleep(options.step_s)
        if saver is not None and (step + 1) % options.save_every == 0:
            say(event="saved", step=step, committed=saver.save(step))
        if (step + 1) % LOOK_EVERY == 0 and told_to_stop(options.stop_file):
            break
    if saver is not None:
        saver.save(step)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    say(event="done", rank=run.rank, start=start, steps=step + 1, hash=digest.hexdigest())


def told_to_stop(stop_file: Path) -> bool:
    """Rank 0 checks for all ranks."""
    stop = torch.tensor(float(stop_file.exists()))
    dist.broadcast(stop, 0)
    return bool(stop.item())


if __name__ == "__main__":
    main()
