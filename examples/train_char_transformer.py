"""Trains a small character-level transformer on Python's help pages, with live hyperparameters.

    torchrun --rdzv-backend=etcd3 --rdzv-id=char-transformer --nproc-per-node=4 examples/train_char_transformer.py
                                                                      # with INSTEP_ETCD, or a running `instep local`
    instep set char-transformer lr=1e-3 --why "loss plateau" --wait   # during training, from another terminal
    instep stop char-transformer                                      # saves a checkpoint, which the next start loads

Plain `python` trains on one rank. `--proof FOLDER` records what each rank did, for `instep demo`.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import instep
import instep.torch

CONTEXT = 48
TEXT = "\n".join(topics[name] for name in sorted(topics))
LETTERS = sorted(set(TEXT))
NUMBERS = torch.tensor([LETTERS.index(letter) for letter in TEXT])


class Hyper(instep.Hyperparameters):
    lr: float = Field(3e-3, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.01, ge=0, le=1)
    dropout: float = instep.fixed(0.05)  # read at the start; cannot be changed live


class CharTransformer(nn.Module):
    def __init__(self, dropout: float, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS), width)
        self.places = nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, text: Tensor) -> Any:
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        return self.head(self.blocks(self.letters(text) + self.places, mask=mask, is_causal=True))


def batch_of(step: int, rank: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Random pieces of the text, different for each rank and step, and the next letter for each letter."""
    dice = torch.Generator().manual_seed(1000 * step + rank)
    starts = torch.randint(len(NUMBERS) - CONTEXT - 1, (size,), generator=dice).tolist()
    pieces = torch.stack([NUMBERS[start : start + CONTEXT + 1] for start in starts])
    return pieces[:, :-1], pieces[:, 1:]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    text, following = batch
    return nn.functional.cross_entropy(model(text).flatten(0, 1), following.flatten())


def parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def train(steps: int, name: str, folder: Path, every: int, slow_s: float, proof: Path | None) -> None:
    with instep.join(name, Hyper) as run:
        torch.manual_seed(0)
        model = parallel(CharTransformer(run.config.dropout))
        opt = torch.optim.AdamW(model.parameters(), lr=run.config.lr, weight_decay=run.config.weight_decay)
        instep.torch.bind(run, opt, lr="lr", weight_decay="weight_decay")
        ckpt = instep.torch.Checkpointer(run, folder, model=model, optimizer=opt, disk=SlowDisk(slow_s))
        start = ckpt.restore()  # the newest complete checkpoint, the same on every rank
        notes = Notes(proof, run)
        notes.write(start=start, sha256=digest(model))
        for step in run.steps(steps, start=start):  # agreed changes apply here, on every rank before the same step
            loss = loss_of(model, batch_of(step, run.rank))
            opt.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), run.config.clip)
            opt.step()
            run.report(loss=loss, grad_norm=norm)
            notes.write(step=step, used=used_by(opt, clip=run.config.clip))
            if run.checkpoint_requested or (step + 1) % every == 0:
                saved = ckpt.save(step)  # one rank saves; if it dies, another one saves
                notes.write(saved=step if saved else None, sha256=digest(model))
            if run.rank == 0 and step % 50 == 0:
                print(f"step {step:5}  loss {loss.item():.3f}  {run.config}", flush=True)
        threads = [thread.name for thread in threading.enumerate()]
        notes.write(end=digest(model), stopped=run.stopped, grpc="grpc" in sys.modules, threads=threads)


def used_by(opt: torch.optim.Optimizer, **more: float) -> dict[str, float]:
    """The values that the update of this step used, read from the optimizer."""
    return {"lr": opt.param_groups[0]["lr"], "weight_decay": opt.param_groups[0]["weight_decay"], **more}


class SlowDisk:
    """A part without content that takes time to save, like a slow network file system."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def state_dict(self) -> dict[str, Any]:
        time.sleep(self._seconds)
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Notes:
    """A record of what one rank did, one JSON line per fact. It survives a kill of the rank."""

    def __init__(self, folder: Path | None, run: instep.Run[Hyper]) -> None:
        self._rank = {"rank": run.rank, "view": run.view, "pid": os.getpid()}
        self._file = (folder / f"rank-{run.rank}.jsonl").open("a") if folder else None

    def write(self, **facts: object) -> None:
        if self._file:
            self._file.write(json.dumps({**self._rank, **facts}) + "\n")
            self._file.flush()


def digest(model: nn.Module) -> str:
    """sha256 of the bits of all parameters."""
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--name", default="char-transformer")
    parser.add_argument("--checkpoints", type=Path, default="checkpoints", metavar="FOLDER")
    parser.add_argument("--save-every", type=int, default=500, metavar="STEPS")
    parser.add_argument("--slow-disk", type=float, default=0.0, metavar="S", help="seconds added to each save")
    parser.add_argument("--proof", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:  # under torchrun
        dist.init_process_group("gloo")
    folder, every = options.checkpoints, options.save_every
    train(options.steps, options.name, folder, every, options.slow_disk, options.proof)
    if dist.is_initialized():
        gc.collect()  # DDP's reducer must be destroyed before its process group
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
