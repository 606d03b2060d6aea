"""Trains a small transformer, letter by letter, on the text of Python's own help pages. Instep steers it.

    torchrun --nproc-per-node 4 examples/train_char_transformer.py    # with INSTEP_ETCD set, or an `instep local`
    instep set char-transformer lr=1e-3 --why "loss plateau" --wait   # while it trains, from another terminal

Plain `python` trains on one rank. `--proof FOLDER` writes down what each rank did; `instep demo` reads that.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator
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


class Hyper(instep.Hyperparameters):
    lr: float = Field(3e-3, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    weight_decay: float = Field(0.01, ge=0, le=1)
    dropout: float = instep.fixed(0.05)  # read when the run starts, refused afterwards


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


def batches(rank: int, size: int = 8) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of the text without end, other ones on each rank, and the letter that follows each letter."""
    number = {letter: at for at, letter in enumerate(LETTERS)}
    text = torch.tensor([number[letter] for letter in TEXT])
    dice = torch.Generator().manual_seed(1000 + rank)
    while True:
        starts = torch.randint(len(text) - CONTEXT - 1, (size,), generator=dice).tolist()
        pieces = torch.stack([text[start : start + CONTEXT + 1] for start in starts])
        yield pieces[:, :-1], pieces[:, 1:]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    text, following = batch
    return nn.functional.cross_entropy(model(text).flatten(0, 1), following.flatten())


def parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def train(steps: int, name: str, proof: Path | None) -> None:
    with instep.join(name, Hyper) as run:
        torch.manual_seed(0)
        model = parallel(CharTransformer(run.config.dropout))
        opt = torch.optim.AdamW(model.parameters(), lr=run.config.lr, weight_decay=run.config.weight_decay)
        instep.torch.bind(run, opt, lr="lr", weight_decay="weight_decay")
        source, used = batches(run.rank), Used()
        for step in run.steps(steps):  # agreed changes apply here, on every rank before the same step
            loss = loss_of(model, next(source))
            opt.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), run.config.clip)
            opt.step()
            run.report(loss=loss, grad_norm=norm)
            used.note(step, opt.param_groups[0], clip=run.config.clip)
            if run.rank == 0 and step % 50 == 0:
                print(f"step {step:5}  loss {loss.item():.3f}  {run.config}", flush=True)
        if proof:
            used.write(proof / f"rank-{run.rank}.json", run.rank, model)


class Used:
    """What the updates of one rank used: a line for each step at which it differs from the step before."""

    def __init__(self) -> None:
        self.steps = 0
        self.changes: list[tuple[int, dict[str, float]]] = []

    def note(self, step: int, group: dict[str, Any], **more: float) -> None:
        values = {"lr": group["lr"], "weight_decay": group["weight_decay"], **more}
        self.steps += 1
        if not self.changes or self.changes[-1][1] != values:
            self.changes.append((step, values))

    def write(self, path: Path, rank: int, model: nn.Module, **more: object) -> None:
        facts = {"rank": rank, "steps": self.steps, "used": self.changes, "sha256": digest(model)}
        facts |= {"grpc": "grpc" in sys.modules, "threads": [thread.name for thread in threading.enumerate()]}
        path.write_text(json.dumps(facts | more))


def digest(model: nn.Module) -> str:
    """sha256 of the bits of all parameters."""
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--name", default="char-transformer")
    parser.add_argument("--proof", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if "RANK" in os.environ:  # under torchrun
        dist.init_process_group("gloo")
    train(options.steps, options.name, options.proof)
    if dist.is_initialized():
        gc.collect()  # the reducer of DDP must be gone before its process group
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
