"""An optimizer that something else writes to does not hold the agreed value: a binding notices, and cries no wolf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bind_cases import TinyRun, training, two_groups, values
from torch.optim import SGD
from torch.optim import lr_scheduler as lrs

import instep.torch
from instep.worker.reports import DriftWatch


def bound(optimizer: SGD, run: TinyRun, **options: Any) -> instep.torch.Binding:
    return instep.torch.bind(run, optimizer, lr="lr", **options)


def write(optimizer: SGD, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


@pytest.mark.parametrize("tensors", [False, True], ids=["floats", "tensors"])
def test_a_loop_that_writes_its_own_lr_is_noticed_and_the_cure_is_named(tensors: bool) -> None:
    """nanoGPT and Megatron write group["lr"] from a function of the step."""
    run, optimizer = TinyRun(lr=0.1), two_groups(0.1, tensors=tensors)
    binding = bound(optimizer, run)
    assert binding._drift() == {}
    write(optimizer, 0.07)
    (said,) = binding._drift().values()
    assert said.startswith(
        "group 0 of the optimizer holds lr=0.07 instead of 0.1. Another part of the script overwrites it"
    )
    assert "scheduler=" in said
    assert values(optimizer) == pytest.approx([0.07, 0.07])  # it is the script's: nothing is written over
    run.agree(lr=0.2)
    assert binding._drift() == {}
    write(optimizer, 0.07)
    assert set(binding._drift()) == {"lr"}


def test_a_loop_that_writes_the_agreed_value_itself_is_no_drift() -> None:
    run, optimizer = TinyRun(lr=0.1), SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    binding = bound(optimizer, run)
    run.agree(lr=0.3)
    write(optimizer, run.config.lr)
    assert binding._drift() == {}


def test_another_key_is_looked_at_too() -> None:
    run = TinyRun(lr=0.1, wd=0.01, momentum=0.9)
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, weight_decay=0.01, momentum=0.9)
    binding = instep.torch.bind(run, optimizer, lr="lr", weight_decay="wd", momentum="momentum")
    optimizer.param_groups[0]["weight_decay"] = 0.5
    (said,) = binding._drift().items()
    assert said[0] == "wd"
    assert "weight_decay=0.5 instead of 0.01" in said[1]


@pytest.mark.parametrize(
    "order",
    [lambda step, write: (write(), step()), lambda step, write: (step(), write())],
    ids=["written before the scheduler steps", "written after"],
)
@pytest.mark.parametrize("name", ["CosineAnnealingLR", "StepLR", "LambdaLR", "SequentialLR"])
def test_a_loop_that_writes_beside_a_bound_scheduler_is_noticed(name: str, order: Callable[..., Any]) -> None:
    """Also where the scheduler computes its next value from what was written, and so hides it."""
    case = training(name, 0.1)
    binding = bound(case.optimizer, TinyRun(lr=0.1), scheduler=case.scheduler)
    for lr in (0.033, 0.032, 0.031):
        case.optimizer.step()
        order(case.scheduler.step, lambda lr=lr: write(case.optimizer, lr))
        (said,) = binding._drift().values()
        assert "group 0 of the optimizer holds lr=" in said


@pytest.mark.parametrize("tensors", [False, True], ids=["floats", "tensors"])
@pytest.mark.parametrize("mode", ["scale", "override"])
@pytest.mark.parametrize("name", ["CosineAnnealingLR", "StepLR", "LambdaLR", "ReduceLROnPlateau", "CyclicLR"])
def test_schedulers_changes_and_loads_are_no_drift(name: str, mode: Any, tensors: bool) -> None:
    try:
        case, run = training(name, 0.1, tensors=tensors), TinyRun(lr=0.1)
        binding = bound(case.optimizer, run, scheduler=case.scheduler, mode=mode)
    except instep.errors.BindError:
        pytest.skip("refused")
    for lr in (0.1, 0.2, 0.0, 0.05):
        run.agree(lr=lr)
        assert binding._drift() == {}
        case.steps(3)
        assert binding._drift() == {}
    case.optimizer.load_state_dict(case.optimizer.state_dict())
    assert binding._drift() == {}
    case.scheduler.load_state_dict(case.scheduler.state_dict())
    assert binding._drift() == {}
    case.steps(2)
    assert binding._drift() == {}


def test_a_scheduler_built_after_bind_is_noticed_without_any_change() -> None:
    optimizer = two_groups(0.1)
    binding = bound(optimizer, TinyRun(lr=0.1))
    late = lrs.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    late.step()
    assert set(binding._drift()) == {"lr"}


def test_a_watch_says_each_hyperparameter_once_and_forgets_one_that_is_held_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    found: dict[str, str] = {}
    watch = DriftWatch(3)
    assert not watch
    remove = watch.add(lambda: found)
    assert watch
    assert watch.look() == ()
    found["lr"] = "group 0 holds another"
    assert watch.look() == watch.look() == ("lr",)
    assert caplog.messages == ["the optimizer of rank 3 does not hold the agreed lr: group 0 holds another"]
    found.clear()
    assert watch.look() == watch.names == ()
    remove()
    assert not watch
