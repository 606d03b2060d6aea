"""A rank under torchrun: DistributedDataParallel on gloo, DataLoader workers, a Checkpointer. See `torchrun.py`."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import instep
import instep.torch
from chaos.harness.records import RecordWriter

RUN: Final = "drill"


class SlowModule(torch.nn.Module):
    """Large enough that a save takes a while."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
        self.register_buffer("ballast", torch.zeros(megabytes * 2**18))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result


def main(text: str) -> int:
    spec = json.loads(text)
    records = RecordWriter(Path(spec["records"]) / f"rank-{os.environ['RANK']}.records")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    module = SlowModule(spec["megabytes"])
    model = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(torch.randn(4096, 8), torch.randn(4096, 1))
    loader = DataLoader(data, batch_size=4, num_workers=2, persistent_workers=spec["persistent"])
    try:
        with instep.join(RUN, timeout_s=60) as run:
            checkpointer = instep.torch.Checkpointer(run, spec["folder"], model=module, optimizer=optimizer)
            start = checkpointer.restore()
            records.write("restored", next=start)
            batches = iter(loader)
            for step in run.steps(10**9, start=start):
                batch = next(batches, None)
                if batch is None:
                    batches = iter(loader)
                    batch = next(batches)
                loss = torch.nn.functional.mse_loss(model(batch[0]), batch[1])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # of torch
                optimizer.step()
                if step == start:
                    workers: list[Any] = batches._workers  # type: ignore[attr-defined]
                    records.write("trains", pid=os.getpid(), workers=[worker.pid for worker in workers])
                if run.checkpoint_requested or step % spec["every"] == 0:
                    records.write("saved", step=step, known=checkpointer.save(step))
            records.write("stopped", step=step + 1, reason=run.stopped)
    except instep.InstepError as error:
        records.write("error", kind=type(error).__name__, text=str(error))
        return error.exit_code
    del model, module, optimizer, checkpointer, batches, loader
    gc.collect()  # DistributedDataParallel must go before its process group, or gloo may abort at exit
    dist.destroy_process_group()
    records.write("left")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
