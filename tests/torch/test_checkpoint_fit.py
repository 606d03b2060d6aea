"""Whether a state fits is known before anything is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from instep.torch._checkpoint.fit import mismatch


class Renaming(nn.Linear):
    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({name.removeprefix("old."): value for name, value in state_dict.items()})


def stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def test_what_was_saved_by_the_same_script_fits() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert mismatch(model, model.state_dict()) is None
    for kind in (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad):
        optimizer = stepped(kind(model.parameters(), lr=0.1))
        before = [group.copy() for group in optimizer.param_groups]
        assert mismatch(optimizer, optimizer.state_dict()) is None
        assert [group.keys() for group in optimizer.param_groups] == [group.keys() for group in before]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.Linear(2, 3), r"weight has the shape \(2, 2\) there and \(3, 2\)"),
        (nn.Linear(2, 2, bias=False), "has bias, which this script's does not have"),
        (nn.Bilinear(2, 2, 2), "weight has the shape"),
        (nn.Sequential(nn.Linear(2, 2)), "it has no 0.bias, 0.weight"),
    ],
)
def test_another_model_does_not_fit(model: nn.Module, told: str) -> None:
    assert __import__("re").search(told, mismatch(model, nn.Linear(2, 2).state_dict()) or "")


def test_a_module_that_loads_in_its_own_way_is_believed() -> None:
    state = {f"old.{name}": value for name, value in nn.Linear(2, 2).state_dict().items()}
    assert mismatch(nn.Linear(2, 2), state) is not None
    assert mismatch(Renaming(2, 2), state) is None


def test_another_optimizer_does_not_fit() -> None:
    model = nn.Linear(2, 2)
    adam, sgd = (stepped(kind(model.parameters(), lr=0.1)) for kind in (torch.optim.AdamW, torch.optim.SGD))
    assert "of another optimizer: it has no" in (mismatch(adam, sgd.state_dict()) or "")
    assert "doesn't match the size" in (mismatch(adam, torch.optim.AdamW([model.weight]).state_dict()) or "")
    assert mismatch(adam, {"rubbish": 1}) is not None


def test_options_that_a_newer_torch_adds_by_itself_are_no_misfit() -> None:
    adam = stepped(torch.optim.AdamW(nn.Linear(2, 2).parameters()))
    older = adam.state_dict()
    older["param_groups"] = [{k: v for k, v in group.items() if k != "amsgrad"} for group in older["param_groups"]]
    assert mismatch(adam, older) is None
