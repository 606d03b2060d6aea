"""A compiled optimizer step sees an agreed change without being compiled again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from bind_cases import TinyRun
from torch.optim import SGD
from torch.optim import lr_scheduler as lrs

import instep.torch


@pytest.fixture
def compiled_count() -> Iterator[list[int]]:
    torch._dynamo.reset()
    yield [0]
    torch._dynamo.reset()


def counting(count: list[int]) -> Callable[..., Any]:
    """A backend that runs the graph as it is, and counts the graphs."""

    def backend(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        count[0] += 1
        return graph.forward

    return backend


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_twelve_changes_of_a_tensor_lr_cost_no_recompilation_and_every_step_uses_the_agreed_value(
    compiled_count: list[int],
) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    optimizer = SGD([parameter], lr=torch.tensor(0.5), foreach=False)
    run = TinyRun(lr=0.5)
    instep.torch.bind(run, optimizer, lr="lr")
    step = torch.compile(lambda: optimizer.step(), backend=counting(compiled_count))

    expected = 0.0
    for change in range(1, 13):
        step()
        expected -= 0.5 / change
        assert parameter.item() == pytest.approx(expected, rel=1e-5)
        if change == 1:
            first = compiled_count[0]
            assert first > 0
        run.agree(lr=0.5 / (change + 1))
    assert compiled_count[0] == first
    optimizer.load_state_dict(optimizer.state_dict())
    step()
    assert parameter.item() == pytest.approx(expected - 0.5 / 13, rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*lr_scheduler.step")
def test_a_scheduled_tensor_lr_costs_no_recompilation_even_through_an_agreed_zero(
    compiled_count: list[int],
) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    optimizer = SGD([parameter], lr=torch.tensor(0.5), foreach=False)
    scheduler = lrs.ExponentialLR(optimizer, 0.5)
    run = TinyRun(lr=0.5)
    instep.torch.bind(run, optimizer, lr="lr", scheduler=scheduler)
    step = torch.compile(lambda: optimizer.step(), backend=counting(compiled_count))

    counts, seen = [], []
    for lr in (0.5, 0.5, 0.25, 0.0, 0.5):
        run.agree(lr=lr)
        before = parameter.item()
        step()
        scheduler.step()
        seen.append(before - parameter.item())
        counts.append(compiled_count[0])
    assert seen == pytest.approx([0.5, 0.25, 0.0625, 0.0, 0.03125])
    assert counts[0] > 0
    assert len(set(counts)) == 1
