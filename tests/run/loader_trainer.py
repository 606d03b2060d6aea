"""A training process that reads from a DataLoader with workers and saves when a checkpoint is requested; for the
tests."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import instep  # first, for workers that are spawned: see instep.worker.children

# isort: split
import torch
from torch.utils.data import DataLoader, Dataset


class Slow(Dataset[torch.Tensor]):
    """Takes 2 ms per item and never ends."""

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.002)
        return torch.full((4,), float(index))


def say(**event: object) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stop-file")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--context", default="fork")
    parser.add_argument("--persistent", action="store_true")
    parser.add_argument("--unprotected", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loader = DataLoader(
        Slow(),
        batch_size=2,
        num_workers=2,
        multiprocessing_context=options.context,
        persistent_workers=options.persistent,
    )
    with instep.join("gpt-a", timeout_s=120, protect_loader_workers=not options.unprotected) as run:
        say(event="joined", rank=run.rank, pid=os.getpid())
        batches = iter(loader)
        for step in run.steps(10**9):
            next(batches)
            if step == 3:
                say(event="trains", workers=[worker.pid for worker in batches._workers])  # type: ignore[attr-defined]
            if run.checkpoint_requested:
                with run.checkpoint(step, folder=options.folder) as slot:
                    if slot is not None:
                        torch.save({"step": step}, slot.path / "state.pt")
                say(event="saved", step=step)
        say(event="stopped", step=step + 1, reason=run.stopped)
    return 0


if __name__ == "__main__":
    sys.exit(main())
