"""Two or more ranks of DistributedDataParallel with forked DataLoader workers, steered live; for the tests."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import Field
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import instep
import instep.torch


class Hyper(instep.Hyperparameters):
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)


def say(**event: object) -> None:
    """One write, newline included: the ranks share a pipe, and print would write twice."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main(stop_file: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(8, 1))
    data = TensorDataset(torch.randn(4096, 8), torch.randn(4096, 1))
    with instep.join("ddp", Hyper, timeout_s=60) as run:
        optimizer = torch.optim.SGD(model.parameters(), lr=run.config.lr, momentum=run.config.momentum)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 100))
        binding = instep.torch.bind(run, optimizer, lr="lr", momentum="momentum", scheduler=scheduler)
        say(event="joined", rank=rank)
        step, seen = 0, None
        stop = torch.zeros(1)
        while not stop.item():
            for x, y in DataLoader(data, batch_size=64, num_workers=2, multiprocessing_context="fork"):
                run.boundary(step)
                now = (run.config.lr, run.config.momentum)
                if now != seen:
                    say(event="config", rank=rank, step=step, lr=now[0])
                    seen = now
                loss = torch.nn.functional.mse_loss(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scheduler.step()
                run.report(loss=loss)
                step += 1
            stop[0] = float(stop_file.exists())
            dist.broadcast(stop, 0)
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        lr = optimizer.param_groups[0]["lr"] * (1 + step / 100)
        changes = binding.statistics.changes
        say(event="done", rank=rank, step=step, hash=digest.hexdigest(), base_lr=lr, changes=changes)
    del model, optimizer, scheduler, binding
    gc.collect()  # DistributedDataParallel must go before its process group, or gloo may abort at exit
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
