"""A run of the smallest shape that `bind` accepts, optimizers to bind, and the schedulers it can scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as lrs

RATIO = 0.1


def _sequential_takes_tensors() -> bool:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1), foreach=False)
    lrs.SequentialLR(optimizer, [lrs.ConstantLR(optimizer), lrs.ConstantLR(optimizer)], milestones=[1])
    return optimizer.param_groups[0]["lr"] is not optimizer.param_groups[0]["initial_lr"]


SEQUENTIAL_TAKES_TENSORS = _sequential_takes_tensors()


class TinyRun:
    """A run of one process: `agree` is a boundary at which a change applies."""

    def __init__(self, *, mapping: bool = False, **values: object) -> None:
        self._mapping = mapping
        self._values = values
        self._listeners: list[Callable[[Any, Any], object]] = []

    @property
    def config(self) -> Any:
        return dict(self._values) if self._mapping else SimpleNamespace(**self._values)

    def on_change(self, fn: Callable[[Any, Any], object], /) -> None:
        self._listeners.append(fn)

    def agree(self, **values: object) -> None:
        old = self.config
        self._values = {**self._values, **values}
        for listener in self._listeners:
            listener(old, self.config)


def parameters(count: int) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.zeros(1)) for _ in range(count)]
    for parameter in made:
        parameter.grad = torch.ones(1)
    return made


def two_groups(lr: float, *, tensors: bool = False, **options: Any) -> SGD:
    """An optimizer whose second group has a tenth of the lr of the first, as a backbone would."""
    first, second = parameters(2)

    def held(value: float) -> Any:
        return torch.tensor(value, dtype=torch.float64) if tensors else value

    groups = [{"params": [first], "lr": held(lr)}, {"params": [second], "lr": held(lr * RATIO)}]
    return SGD(groups, lr=held(lr), foreach=False, **options)


def values(optimizer: Optimizer, key: str = "lr") -> list[float]:
    return [float(group[key]) for group in optimizer.param_groups]


def close(steps: list[list[float]]) -> list[Any]:
    """The lrs of some steps, as far as arithmetic in another order can give them."""
    return [pytest.approx(step, rel=1e-9, abs=1e-15) for step in steps]


def half_then_tenth(step: int) -> float:
    return 0.5 if step < 4 else 0.1


def shrink(step: int) -> float:
    return 0.9


def warmup_then_cosine(optimizer: Optimizer, lr: float) -> lrs.LRScheduler:
    warmup = lrs.LinearLR(optimizer, start_factor=0.1, total_iters=4)
    cosine = lrs.CosineAnnealingLR(optimizer, T_max=12, eta_min=lr * 0.01)
    return lrs.SequentialLR(optimizer, [warmup, cosine], milestones=[4])


def nested(optimizer: Optimizer, lr: float) -> lrs.LRScheduler:
    flat, decay = lrs.ConstantLR(optimizer, 0.5, 3), lrs.ExponentialLR(optimizer, 0.9)
    return lrs.ChainedScheduler([flat, decay], optimizer)


def cyclic(optimizer: Optimizer, lr: float) -> lrs.LRScheduler:
    return lrs.CyclicLR(optimizer, [lr * 0.2, lr * 0.02], [lr, lr * RATIO], step_size_up=3, cycle_momentum=False)


SCHEDULERS: Mapping[str, Callable[[Optimizer, float], lrs.LRScheduler]] = {
    "LambdaLR": lambda o, lr: lrs.LambdaLR(o, half_then_tenth),
    "MultiplicativeLR": lambda o, lr: lrs.MultiplicativeLR(o, shrink),
    "StepLR": lambda o, lr: lrs.StepLR(o, step_size=3, gamma=0.5),
    "MultiStepLR": lambda o, lr: lrs.MultiStepLR(o, milestones=[2, 6], gamma=0.3),
    "ConstantLR": lambda o, lr: lrs.ConstantLR(o, factor=0.5, total_iters=6),
    "LinearLR": lambda o, lr: lrs.LinearLR(o, start_factor=0.1, total_iters=8),
    "ExponentialLR": lambda o, lr: lrs.ExponentialLR(o, gamma=0.9),
    "PolynomialLR": lambda o, lr: lrs.PolynomialLR(o, total_iters=16, power=2.0),
    "CosineAnnealingLR": lambda o, lr: lrs.CosineAnnealingLR(o, T_max=7, eta_min=lr * 0.01),
    "CosineAnnealingWarmRestarts": lambda o, lr: lrs.CosineAnnealingWarmRestarts(o, T_0=5, eta_min=lr * 0.01),
    "CyclicLR": cyclic,
    "ReduceLROnPlateau": lambda o, lr: lrs.ReduceLROnPlateau(o, factor=0.5, patience=1, min_lr=lr * 0.02),
    "SequentialLR": warmup_then_cosine,
    "ChainedScheduler": nested,
}


@dataclass
class Training:
    """An optimizer under a scheduler, stepped together; `lrs` are what each step ran with."""

    optimizer: Optimizer
    scheduler: lrs.LRScheduler

    def steps(self, count: int) -> list[list[float]]:
        ran = []
        for _ in range(count):
            ran.append(values(self.optimizer))
            self.optimizer.step()
            if isinstance(self.scheduler, lrs.ReduceLROnPlateau):
                self.scheduler.step(1.0)  # a loss that never improves
            else:
                self.scheduler.step()
        return ran


def training(name: str, lr: float, *, tensors: bool = False) -> Training:
    """A training whose second group has a tenth of the lr, under the scheduler called `name`."""
    optimizer = two_groups(lr, tensors=tensors)
    if tensors and name == "SequentialLR" and not SEQUENTIAL_TAKES_TENSORS:
        pytest.skip("this torch makes lr and initial_lr one tensor, which bind refuses")
    return Training(optimizer, SCHEDULERS[name](optimizer, lr))
