"""Schedulers and scalers that a Checkpointer was not given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from instep.torch._checkpoint.parts import left_out


class Wrapper(torch.optim.Optimizer):
    """As Accelerate's: it is an optimizer, and shows the groups of the one that it keeps."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups


@pytest.fixture
def optimizer() -> SGD:
    return SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 10),
        lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.LinearLR(optimizer), lr_scheduler.CosineAnnealingLR(optimizer, 10)], [5]
        ),
    ],
    ids=["cosine", "plateau", "sequential"],
)
def test_a_scheduler_of_a_saved_optimizer_is_named_with_the_cure_until_it_is_a_part(optimizer: SGD, make: Any) -> None:
    scheduler = make(optimizer)
    (said,) = left_out({"optimizer": optimizer})
    assert f"do not hold the {type(scheduler).__name__}" in said
    assert "Checkpointer(..., scheduler=scheduler)" in said
    assert left_out({"optimizer": optimizer, "schedule": scheduler}) == []


def test_a_scheduler_of_another_optimizer_is_none_of_its_business(optimizer: SGD) -> None:
    other = SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    scheduler = lr_scheduler.StepLR(other, 3)
    assert left_out({"optimizer": optimizer}) == []
    assert left_out({"model": torch.nn.Linear(1, 1)}) == []
    assert len(left_out({"optimizer": other})) == 1
    del scheduler


def test_a_scheduler_inside_a_part_or_on_a_wrapped_optimizer_is_found(optimizer: SGD) -> None:
    class Both:
        def __init__(self, *inner: Any) -> None:
            self.inner = list(inner)

    scheduler = lr_scheduler.StepLR(optimizer, 3)
    assert len(left_out({"optimizer": Wrapper(optimizer)})) == 1
    assert left_out({"optimizer": optimizer, "state": Both(scheduler)}) == []
    assert len(left_out({"state": Both(optimizer)})) == 1


def test_a_gradient_scaler_is_named_unless_it_is_off_or_a_part(optimizer: SGD) -> None:
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert left_out({"optimizer": optimizer}) == []
    scaler = torch.amp.GradScaler("cpu")
    (said,) = left_out({"optimizer": optimizer})
    assert "Checkpointer(..., scaler=scaler)" in said
    assert left_out({"optimizer": optimizer, "scaler": scaler}) == []
    del off
