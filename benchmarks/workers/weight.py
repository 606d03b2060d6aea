"""Reports the memory that joining a run adds to a trainer. Argument: a module to import before, or `-`."""

from __future__ import annotations

import gc
import importlib
import json
import sys

from chaos.harness.processes import memory_mb


def main() -> None:
    if sys.argv[1] != "-":
        importlib.import_module(sys.argv[1])
    gc.collect()
    before = memory_mb()
    import instep

    class Hyper(instep.Hyperparameters):
        lr: float = 3e-4
        clip: float = 1.0

    with instep.join("bench", Hyper, timeout_s=60) as run:
        for _step in run.steps(1000):
            pass
        gc.collect()
        after = memory_mb()
    if "grpc" in sys.modules:
        raise RuntimeError("joining a run has imported grpc into the trainer")
    print(json.dumps({name: after[name] - before[name] for name in after}), flush=True)


if __name__ == "__main__":
    main()
