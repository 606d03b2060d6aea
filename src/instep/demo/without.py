"""The same training without Instep: each rank polls etcd on its own and applies a change when it sees it.

A script (`python without.py EXAMPLE ...`). It imports the example, and so torch, once and forks one process per rank.
This is what people write by hand. Every rank polls once per ten steps, at a different phase, since no two processes
share a clock. Here the phases are spread evenly, to make the outcome independent of luck. The rest is as in the
example: same model, data, loss and DDP.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import multiprocessing
import multiprocessing.connection
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WARM = 3
"""Steps that are not measured: the first ones are slower."""
CHECK_AT = 10
"""The step at which the ranks are first compared, before any change."""
SAY_AT = 15
"""The step at which rank 0 requests the change."""
LR = 3e-3
PERIOD_STEPS = 10
_TIMEOUT_S = 10.0


class Poller:
    """One rank's polling of etcd."""

    def __init__(self, endpoint: str, key: str, period_s: float, phase: float) -> None:
        self._request = urllib.request.Request(
            f"{endpoint}/v3/kv/range", json.dumps({"key": base64.b64encode(key.encode()).decode()}).encode()
        )
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        self.period_s = period_s
        self._next_at = (time.monotonic() // period_s + 1 + phase) * period_s

    def poll(self) -> float | None:
        """The value in etcd if a poll is due, else None."""
        if time.monotonic() < self._next_at:
            return None
        self._next_at += self.period_s
        with self._open(self._request, timeout=_TIMEOUT_S) as answer:
            found = json.load(answer).get("kvs", [])
        return float(base64.b64decode(found[0]["value"])) if found else None


def train(rank: int, example: Any, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{options.proof / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=options.ranks)
    torch.manual_seed(0)
    model = example.parallel(example.CharTransformer(example.Hyper().dropout))
    opt = torch.optim.AdamW(model.parameters(), lr=LR)
    used: list[tuple[int, float]] = []
    """The lr that updates used: step and lr for each step where it changed."""
    poller, before, began = None, "", 0.0
    for step in range(options.steps):
        if step == WARM:
            began = time.monotonic()
        if step == CHECK_AT:
            before = example.digest(model)
            period_s = _same_everywhere((time.monotonic() - began) / (CHECK_AT - WARM) * PERIOD_STEPS)
            poller = Poller(options.etcd, options.key, period_s, rank / options.ranks)
        if rank == 0 and step == SAY_AT:
            (options.proof / "now").touch()
        heard = poller.poll() if poller else None
        if heard is not None:
            for group in opt.param_groups:
                group["lr"] = heard
        loss = example.loss_of(model, example.batch_of(step, rank))
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        lr = opt.param_groups[0]["lr"]
        if not used or used[-1][1] != lr:
            used.append((step, lr))
    facts = {"rank": rank, "used": used, "before": before, "after": example.digest(model)}
    proof = options.proof / f"rank-{rank}.json"
    proof.write_text(json.dumps({**facts, "difference": _difference(model)}))


def _same_everywhere(value: float) -> float:
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def _difference(model: torch.nn.Module) -> float:
    """The largest difference between a parameter of this rank and the same one of rank 0."""
    mine = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    first = mine.clone()
    dist.broadcast(first, 0)
    return float((mine - first).abs().max())


def _rank(rank: int, example: Any, options: argparse.Namespace) -> None:
    train(rank, example, options)
    example.gc.collect()  # DDP's reducer must be destroyed before its process group
    dist.destroy_process_group()


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["example"] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", type=Path)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--etcd", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--proof", type=Path, required=True)
    options = parser.parse_args()
    example = _load(options.example)
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(rank, example, options)) for rank in range(options.ranks)]
    for process in ranks:
        process.start()
    while alive := [process.sentinel for process in ranks if process.exitcode is None]:
        multiprocessing.connection.wait(alive)
        if any(process.exitcode for process in ranks):  # the others would wait for it in a collective, without end
            for process in ranks:
                process.kill()
    return max(abs(process.exitcode or 0) for process in ranks)


if __name__ == "__main__":
    sys.exit(main())
