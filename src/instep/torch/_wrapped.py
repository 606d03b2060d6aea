"""Optimizers and schedulers inside the wrappers of Accelerate, Lightning Fabric and others."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def unwrapped_optimizer(optimizer: Any) -> Any:
    """The torch optimizer below wrappers that keep it as `.optimizer` and show its groups as their own."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        if getattr(optimizer, "param_groups", None) is not inner.param_groups:
            break
        optimizer = inner
    return optimizer


def unwrapped_scheduler(scheduler: Any) -> Any:
    """The torch scheduler below wrappers that keep it as `.scheduler`."""
    inner = getattr(scheduler, "scheduler", None)
    return inner if isinstance(inner, LRScheduler) and not isinstance(scheduler, LRScheduler) else scheduler
