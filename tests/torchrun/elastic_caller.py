"""A program that starts its workers by torch's elastic_launch, as notebooks and services do: no torchrun.

Arguments: START_METHOD ENDPOINT NAMESPACE FAILS_ONCE
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def train(fails_once: Path) -> tuple[int, int]:
    """The sum of all ranks' 1, and how often the workers were started anew."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    if dist.get_rank() == 0 and not fails_once.exists():
        fails_once.touch()
        os._exit(3)
    dist.barrier()
    dist.destroy_process_group()
    return int(total.item()), int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def main(start_method: str, endpoint: str, namespace: str, fails_once: str) -> None:
    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=1,
        run_id="called",
        rdzv_backend="etcd3",
        rdzv_endpoint=endpoint,
        rdzv_configs={"namespace": namespace, "keep_alive_interval": 1, "last_call_timeout": 1},
        start_method=start_method,
        max_restarts=3,
    )
    found = elastic_launch(config, train)(Path(fails_once))
    print("found", sorted(found.items()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
