"""Binding an optimizer that was loaded, or has stepped, before; and optimizers inside wrappers of other libraries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bind_cases import TinyRun, values
from torch.optim import AdamW
from torch.optim import lr_scheduler as lrs

import instep.torch
from instep.errors import BindError


def made(lr: float, *, second: float | None = None) -> tuple[AdamW, lrs.LRScheduler]:
    """Two groups, the second with a tenth of the lr unless said, under a cosine."""
    groups = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    for parameter in groups:
        parameter.grad = torch.ones(2)
    optimizer = AdamW(
        [{"params": [groups[0]]}, {"params": [groups[1]], "lr": lr / 10 if second is None else second}], lr=lr
    )
    return optimizer, lrs.CosineAnnealingLR(optimizer, 100)


def advance(optimizer: AdamW, scheduler: lrs.LRScheduler, steps: int) -> None:
    for _ in range(steps):
        optimizer.step()
        scheduler.step()


def saved(lr: float, **options: Any) -> tuple[Any, Any]:
    optimizer, scheduler = made(lr, **options)
    instep.torch.bind(TinyRun(lr=lr), optimizer, lr="lr", scheduler=scheduler)
    advance(optimizer, scheduler, 50)
    return optimizer.state_dict(), scheduler.state_dict()


def resumed(lr: float, states: tuple[Any, Any], *, late: bool, ratio: Any = None, **made_with: Any) -> list[float]:
    """The lrs ten steps after a resume with another agreed lr, bound before the load or after."""
    optimizer, scheduler = made(lr, **made_with)

    def bind() -> None:
        instep.torch.bind(TinyRun(lr=lr), optimizer, lr="lr", scheduler=scheduler, ratio=ratio)

    if not late:
        bind()
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    if late:
        bind()
    advance(optimizer, scheduler, 10)
    return values(optimizer)


def test_bound_after_the_load_with_its_ratios_it_is_where_it_would_be_bound_before() -> None:
    states = saved(1e-2)
    assert resumed(2e-2, states, late=True, ratio=(1, 0.1)) == pytest.approx(resumed(2e-2, states, late=False))


def test_without_ratios_that_can_be_told_it_is_refused_with_those_that_are_likely() -> None:
    with pytest.raises(BindError, match=r"loaded or has stepped before bind.*such as ratio=\(1, 0\.1\)"):
        resumed(2e-2, saved(1e-2), late=True)


def test_where_all_groups_have_one_lr_no_ratios_are_needed() -> None:
    states = saved(1e-2, second=1e-2)
    early = resumed(2e-2, states, late=False, second=2e-2)
    assert resumed(2e-2, states, late=True, second=2e-2) == pytest.approx(early)


def test_bound_late_with_the_agreed_value_of_the_checkpoint_nothing_needs_to_be_said() -> None:
    states = saved(1e-2)
    assert resumed(1e-2, states, late=True) == pytest.approx(resumed(1e-2, states, late=False))


def test_given_ratios_hold_without_a_scheduler_for_each_key_and_through_changes() -> None:
    run = TinyRun(lr=0.1, wd=0.2)
    optimizer, _ = made(0.7)
    for group in optimizer.param_groups:
        del group["initial_lr"]
    instep.torch.bind(run, optimizer, lr="lr", weight_decay="wd", ratio={"lr": (10, 1), "weight_decay": 0.5})
    assert values(optimizer) == pytest.approx([1.0, 0.1])
    assert values(optimizer, "weight_decay") == pytest.approx([0.1, 0.1])
    run.agree(lr=0.2, wd=0.4)
    assert values(optimizer) == pytest.approx([2.0, 0.2])
    assert values(optimizer, "weight_decay") == pytest.approx([0.2, 0.2])


def test_given_ratios_change_the_schedule_of_a_fresh_optimizer_as_a_whole() -> None:
    run = TinyRun(lr=0.1)
    optimizer, scheduler = made(0.1, second=0.1)
    instep.torch.bind(run, optimizer, lr="lr", scheduler=scheduler, ratio=(1, 0.25))
    advance(optimizer, scheduler, 50)
    assert values(optimizer) == pytest.approx([0.05, 0.0125])
    optimizer, scheduler = made(0.1, second=0.1)
    closed_form = lrs.LambdaLR(optimizer, lambda step: 0.5)
    instep.torch.bind(run, optimizer, lr="lr", scheduler=closed_form, ratio=(1, 0.25))
    advance(optimizer, closed_form, 3)
    assert values(optimizer) == pytest.approx([0.05, 0.0125])


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        ((1, 2, 3), "pass one number for all groups, or 2 numbers"),
        (("a", 1), "one for each group"),
        ((1, float("nan")), "one for each group"),
        ({"betas": 1}, "ratio names betas, which is not bound: name lr"),
    ],
)
def test_ratios_that_do_not_fit_are_refused(ratio: Any, told: str) -> None:
    optimizer, scheduler = made(0.1)
    with pytest.raises(BindError, match=told):
        instep.torch.bind(TinyRun(lr=0.1), optimizer, lr="lr", scheduler=scheduler, ratio=ratio)
    with pytest.raises(BindError, match="lr and weight_decay are bound: pass ratio="):
        instep.torch.bind(
            TinyRun(lr=0.1, wd=0.1), optimizer, lr="lr", weight_decay="wd", scheduler=scheduler, ratio=2.0
        )


class WrappedOptimizer(torch.optim.Optimizer):
    """As Accelerate's: an optimizer by its type, which keeps the real one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: Any) -> None:
        self.optimizer.param_groups = groups

    @property
    def defaults(self) -> Any:
        return self.optimizer.defaults

    @property
    def state(self) -> Any:
        return self.optimizer.state

    def step(self, closure: Any = None) -> None:
        self.optimizer.step(closure)


class WrappedScheduler:
    def __init__(self, scheduler: lrs.LRScheduler) -> None:
        self.scheduler = scheduler


@pytest.mark.parametrize("inner", [False, True], ids=["the wrapper", "what it wraps"])
def test_wrapped_optimizers_and_schedulers_are_bound(inner: bool) -> None:
    optimizer, _ = made(0.1)
    wrapper = WrappedOptimizer(optimizer)
    scheduler = lrs.LambdaLR(wrapper, lambda step: 1.0)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, optimizer if inner else wrapper, lr="lr", scheduler=WrappedScheduler(scheduler))  # type: ignore[arg-type]
    run.agree(lr=0.3)
    assert values(optimizer) == pytest.approx([0.3, 0.03])
    with pytest.raises(BindError, match="already bound"):
        instep.torch.bind(run, wrapper, lr="lr", scheduler=scheduler)
