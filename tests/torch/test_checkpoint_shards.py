"""What shards hold of parameters that no gradient has reached yet, and which shards fit a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from instep.errors import CheckpointError
from instep.torch._checkpoint.metadata import read_metadata
from instep.torch._checkpoint.shards import Shards
from instep.worker.manifest import Owners


class Experts(nn.Module):
    def __init__(self, idle: int = 2) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, idle)

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        return self.used(x).sum() + (self.idle(x).sum() if both else 0)


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Script:
    def __init__(self, idle: int = 2, kind: type[torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        torch.manual_seed(0)
        self.model = Experts(idle)
        fully_shard(self.model, mesh=init_device_mesh("cpu", (1,)))
        self.optimizer = kind(self.model.parameters(), lr=0.1)
        self.shards = Shards({"model": self.model, "optimizer": self.optimizer}, rank=0, world_size=1)

    def train(self, *, both: bool) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(1, 2), both).backward()
        self.optimizer.step()

    def save(self, folder: Path) -> Path:
        folder.mkdir()
        self.shards.write(folder)
        return folder

    def restore(self, folder: Path) -> None:
        self.shards.read(folder, Owners(folder), weights_only=True)

    def mismatch(self, folder: Path) -> str | None:
        return self.shards.mismatch(read_metadata(folder, Owners(folder)))

    def held(self) -> dict[str, float]:
        """What the optimizer has of each parameter: its steps."""
        named = {parameter: name for name, parameter in self.model.named_parameters()}
        return {named[parameter]: float(state["step"]) for parameter, state in self.optimizer.state.items()}  # type: ignore[index]

    def values(self) -> list[torch.Tensor]:
        return [parameter.full_tensor() for parameter in self.model.parameters()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("both_since", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_a_parameter_without_state_has_none_after_a_restore_and_is_trained_as_it_would_have_been(
    tmp_path: Path, live: bool, both_since: bool
) -> None:
    script = Script()
    script.train(both=False)
    folder = script.save(tmp_path / "saved")
    script.train(both=both_since)
    after = script.values()

    other = script if live else Script()
    if live:
        other.train(both=True)
    assert other.mismatch(folder) is None
    other.restore(folder)
    assert other.held() == {"used.weight": 1.0, "used.bias": 1.0}
    other.train(both=both_since)
    for mine, theirs in zip(other.values(), after, strict=True):
        assert torch.equal(mine, theirs)


def test_state_that_this_life_has_not_made_yet_is_restored_too(tmp_path: Path) -> None:
    script = Script()
    script.train(both=True)
    folder = script.save(tmp_path / "saved")
    other = Script()
    other.train(both=False)  # only what is used has a state
    gradients = [parameter.grad for parameter in other.model.parameters()]
    other.restore(folder)
    assert set(other.held()) == {"used.weight", "used.bias", "idle.weight", "idle.bias"}
    assert [parameter.grad for parameter in other.model.parameters()] == gradients


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"idle": 3}, "has the shape"),
        ({"kind": torch.optim.SGD}, "it has no optimizer.param_groups.0."),
    ],
)
def test_what_does_not_fit_is_known_before_anything_is_loaded(
    tmp_path: Path, other: dict[str, object], told: str
) -> None:
    script = Script()
    script.train(both=True)
    folder = script.save(tmp_path / "saved")
    unlike = Script(**other)  # type: ignore[arg-type]
    before = unlike.values()
    assert told in (unlike.mismatch(folder) or "")
    with pytest.raises(CheckpointError):
        unlike.restore(folder)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(unlike.values(), before, strict=True))
