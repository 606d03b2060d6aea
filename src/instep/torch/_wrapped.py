"""Optimizers and schedulers inside the wrappers of Accelerate, Lightning Fabric and others."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


def unwrapped_optimizer(optimizer: Any) -> Any:
    """The torch optimizer below wrappers that keep it as `.optimizer` and show its groups as their own."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        if getattr(optimizer, "param_groups", None) is not inner.param_groups:
            break
        optimizer = inner
    return optimizer
