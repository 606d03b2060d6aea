"""A rank that trains a small model and saves it on command: `saver.py` with a Checkpointer."""

from __future__ import annotations

import gc
import hashlib
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from saver import Saver, main
from torch import Tensor, nn

import instep.torch


class Slow:
    """A part whose state takes as long to read as the file `hold` exists."""

    def __init__(self, hold: Path) -> None:
        self._hold = hold
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        self._hold.with_suffix(".seen").touch()
        while self._hold.exists():
            time.sleep(0.005)
        self.count += 1
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Heavy:
    """A part with a large state; `odd` makes it one that torch loads only if it may trust it."""

    def __init__(self, size: int, odd: bool) -> None:
        self._state = {"ballast": torch.zeros(size), **({"odd": _Odd()} if odd else {})}

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._state = state


class _Odd:
    pass


class TorchSaver(Saver):
    def build(self, wrap: str = "", seed: int = 0, world: str = "", width: int = 16, **options: Any) -> dict[str, Any]:
        """`wrap`: "", "ddp", "fsdp" or "compile"; `world`: a file by which the ranks form a process group."""
        torch.set_num_threads(1)
        if world:
            place = {"rank": self.run.rank, "world_size": self.run.world_size}
            dist.init_process_group("gloo", init_method=f"file://{world}", **place)
        torch.manual_seed(seed)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(8, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 1)
        )
        self.model = _wrapped(self.model, wrap)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.run.config.lr)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 5)
        instep.torch.bind(self.run, self.optimizer, lr="lr", scheduler=self.scheduler)
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}
        if hold := options.pop("hold", ""):
            parts["slow"] = Slow(Path(hold))
        if size := options.pop("ballast", 0):
            parts["heavy"] = Heavy(size, options.pop("odd", False))
        for name in options.pop("without", []):
            del parts[name]
        self.checkpointer = instep.torch.Checkpointer(self.run, self.folder, **parts, **options)
        return self.state()

    def train(self, start: int, steps: int) -> dict[str, Any]:
        """All ranks learn from the same batch, so a rank alone gets the same result."""
        for step in range(start, start + steps):
            if step > self.run._step:
                assert self.run.boundary(step) == step
            self._update(step)
        return self.state()

    def _update(self, step: int) -> None:
        dice = torch.Generator().manual_seed(step)
        loss = self.model(torch.randn(4, 8, generator=dice)).pow(2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()

    def train_until_back(self, start: int) -> dict[str, Any]:
        """Until the run is restored to a checkpoint."""
        for step in range(start, start + 100_000):
            next_step = self.run.boundary(step)
            if next_step != step:
                return {"next": next_step, **self.state()}
            self._update(step)
            time.sleep(0.005)
        raise AssertionError("the run was not restored")

    def keep(self, step: int) -> dict[str, Any]:
        return {"saved": self.checkpointer.save(step), **self.state()}

    def lose_answers(self) -> None:
        """The next forget succeeds, but its reply is lost."""
        registry = self.run.checkpoints
        forget = registry.forget

        def lost(ids: Any) -> Any:
            forget(ids)
            registry.forget = forget  # type: ignore[method-assign]
            raise instep.EtcdUnavailable("the answer was lost")

        registry.forget = lost  # type: ignore[method-assign]

    def refuse_adoption(self) -> None:
        """Once, as if this rank gets another token before its request arrives."""
        registry = self.run.checkpoints
        adopt = registry.adopt

        def refused(records: Any) -> tuple[str, ...]:
            registry.adopt = adopt  # type: ignore[method-assign]
            return ()

        registry.adopt = refused  # type: ignore[method-assign]

    def limit_files(self, size: int) -> None:
        """No file of this process can grow beyond that: the nearest thing to a full disk."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def wait(self) -> dict[str, Any]:
        return {"saved": self.checkpointer.wait()}

    def restore(self, timeout_s: float = 30) -> dict[str, Any]:
        return {"next": self.checkpointer.restore(timeout_s), **self.state()}

    def state(self) -> dict[str, Any]:
        held = [*self.model.state_dict().values(), *_tensors_in(self.optimizer.state_dict()["state"])]
        digest = hashlib.sha256()
        for tensor in held:
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            digest.update(whole.detach().numpy().tobytes())
        return {"hash": digest.hexdigest(), "lr": self.optimizer.param_groups[0]["lr"]}

    def part(self) -> None:
        del self.model, self.optimizer, self.scheduler, self.checkpointer
        gc.collect()  # DistributedDataParallel must go before its process group, or gloo may abort at exit
        dist.destroy_process_group()


def _wrapped(model: nn.Module, wrap: str) -> nn.Module:
    if wrap == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    if wrap == "compile":
        return torch.compile(model, backend="eager")  # type: ignore[return-value]  # a module, though not typed as one
    if wrap == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in model.children():
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def _tensors_in(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [tensor for key in sorted(state, key=str) for tensor in _tensors_in(state[key])]
    return []


if __name__ == "__main__":
    sys.exit(main(TorchSaver))
