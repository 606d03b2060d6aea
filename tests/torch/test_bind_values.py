"""What a bound optimizer without a scheduler holds, and what `bind` refuses."""

from __future__ import annotations

import dataclasses
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from bind_cases import TinyRun, parameters, two_groups, values
from torch.optim import SGD, Adam, AdamW

import instep.torch
from instep.errors import BindError


@pytest.mark.parametrize("mapping", [False, True], ids=["schema", "mapping"])
def test_from_the_call_on_the_groups_hold_their_ratio_of_the_agreed_value(mapping: bool) -> None:
    optimizer = two_groups(3e-4)
    run = TinyRun(mapping=mapping, lr=1e-4)
    instep.torch.bind(run, optimizer, lr="lr")
    assert values(optimizer) == pytest.approx([1e-4, 1e-5])
    run.agree(lr=2e-4)
    assert values(optimizer) == pytest.approx([2e-4, 2e-5])


def test_a_group_at_the_default_holds_the_agreed_value_to_the_bit() -> None:
    optimizer = two_groups(3e-4)
    run = TinyRun(lr=1.1e-4)
    instep.torch.bind(run, optimizer, lr="lr")
    for lr in (0.1 + 0.2, 1e-300, 7.0):
        run.agree(lr=lr)
        assert values(optimizer)[0] == lr


def test_ratios_survive_an_agreed_zero() -> None:
    optimizer = two_groups(0.1, weight_decay=0.01)
    run = TinyRun(lr=0.0, wd=0.0)
    instep.torch.bind(run, optimizer, lr="lr", weight_decay="wd")
    assert values(optimizer) + values(optimizer, "weight_decay") == [0.0] * 4
    run.agree(lr=1e-4, wd=0.3)
    assert values(optimizer) == pytest.approx([1e-4, 1e-5])
    assert values(optimizer, "weight_decay") == [0.3, 0.3]


def test_a_no_decay_group_stays_without_decay() -> None:
    decay, none = parameters(2)
    groups: list[dict[str, Any]] = [{"params": [decay]}, {"params": [none], "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=1e-3, weight_decay=0.1)
    run = TinyRun(wd=0.1)
    instep.torch.bind(run, optimizer, weight_decay="wd")
    run.agree(wd=0.4)
    assert values(optimizer, "weight_decay") == [0.4, 0.0]


def test_a_default_of_zero_gives_way_to_the_agreed_value_but_has_no_ratio_to_a_group_above_it() -> None:
    at_default = Adam(parameters(1), lr=1e-3)
    instep.torch.bind(TinyRun(wd=0.2), at_default, weight_decay="wd")
    assert at_default.param_groups[0]["weight_decay"] == 0.2

    above = Adam([{"params": parameters(1), "weight_decay": 0.1}], lr=1e-3)
    with pytest.raises(BindError, match=r"default is 0.*construct"):
        instep.torch.bind(TinyRun(wd=0.2), above, weight_decay="wd")


def test_a_tensor_is_filled_in_place_also_where_all_groups_share_it() -> None:
    shared = torch.tensor(0.1)
    optimizer = SGD([{"params": [p]} for p in parameters(2)], lr=shared, foreach=False)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, optimizer, lr="lr")
    run.agree(lr=0.25)
    assert all(group["lr"] is shared for group in optimizer.param_groups)
    assert float(shared) == 0.25


def test_an_element_of_a_tuple_is_set_and_the_others_are_kept() -> None:
    optimizer = AdamW(parameters(1), betas=(0.9, 0.95))
    run = TinyRun(beta1=0.9, beta2=0.95)
    names: dict[str, Any] = {"betas.0": "beta1", "betas.1": "beta2"}
    instep.torch.bind(run, optimizer, **names)
    run.agree(beta1=0.8)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_an_int_stays_an_int_and_a_bool_a_bool() -> None:
    optimizer = torch.optim.LBFGS(parameters(1), lr=1, history_size=100)
    ascent = SGD(parameters(1), lr=0.1)
    run = TinyRun(history=20, climb=True)
    instep.torch.bind(run, optimizer, history_size="history")
    instep.torch.bind(run, ascent, maximize="climb")
    assert repr(optimizer.param_groups[0]["history_size"]) == "20"
    assert ascent.param_groups[0]["maximize"] is True
    run.agree(history=5, climb=False)
    assert repr(optimizer.param_groups[0]["history_size"]) == "5"
    assert ascent.param_groups[0]["maximize"] is False


def test_a_group_added_later_starts_from_the_agreed_value_and_keeps_the_ratio_it_asks_for() -> None:
    optimizer = two_groups(0.1)
    run = TinyRun(lr=0.2)
    instep.torch.bind(run, optimizer, lr="lr")
    optimizer.add_param_group({"params": parameters(1)})
    optimizer.add_param_group({"params": parameters(1), "lr": 0.1})
    assert values(optimizer) == pytest.approx([0.2, 0.02, 0.2, 0.1])
    run.agree(lr=0.4)
    assert values(optimizer) == pytest.approx([0.4, 0.04, 0.4, 0.2])


def test_an_agreed_value_that_is_no_number_is_reported_and_the_last_good_one_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run without a schema takes any scalar; stopping every rank for one would be worse."""
    optimizer = two_groups(0.1)
    run = TinyRun(mapping=True, lr=0.2)
    binding = instep.torch.bind(run, optimizer, lr="lr")
    for bad in ("fast", math.nan, None, True):
        run.agree(lr=bad)
        assert values(optimizer) == pytest.approx([0.2, 0.02])
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 4
    assert "lr is 'fast', not a number" in caplog.text
    assert binding.statistics.refused == 4
    run.agree(lr=0.3)
    assert values(optimizer)[0] == 0.3


def test_it_warns_when_no_group_has_the_default_as_after_a_load_that_came_too_early(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = AdamW([{"params": parameters(1), "lr": 3e-4}])
    instep.torch.bind(TinyRun(lr=3e-4), optimizer, lr="lr")
    assert caplog.messages == ["no group has the optimizer's default lr; bound as lr = (0.3) × lr 0.0003"]


def test_a_released_binding_lets_go_and_the_optimizer_can_be_bound_again_with_the_same_ratios() -> None:
    optimizer = two_groups(0.1)
    run = TinyRun(lr=0.2)
    binding = instep.torch.bind(run, optimizer, lr="lr")
    run.agree(lr=0.5)
    binding.release()
    binding.release()
    run.agree(lr=0.3)
    assert values(optimizer) == pytest.approx([0.5, 0.05])
    optimizer.load_state_dict(two_groups(0.7).state_dict())
    assert values(optimizer) == pytest.approx([0.7, 0.07])
    optimizer.load_state_dict(two_groups(0.5).state_dict())
    instep.torch.bind(run, optimizer, lr="lr")
    assert values(optimizer) == pytest.approx([0.3, 0.03])


def test_a_bound_optimizer_is_kept_alive_by_its_run_and_freed_with_it() -> None:
    optimizer, run = two_groups(0.1), TinyRun(lr=0.1)
    instep.torch.bind(run, optimizer, lr="lr")
    watched = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    run.agree(lr=0.2)
    assert watched() is not None
    del run
    gc.collect()
    assert watched() is None


def test_a_binding_tells_what_it_holds_and_what_it_did() -> None:
    optimizer = two_groups(0.1)
    run = TinyRun(lr=0.1, other=1)
    binding = instep.torch.bind(run, optimizer, lr="lr")
    before = binding.statistics
    run.agree(lr=0.2)
    run.agree(other=2)
    optimizer.load_state_dict(optimizer.state_dict())
    after = binding.statistics
    assert (before.changes, after.changes, after.loads) == (0, 1, 1)
    assert after.agreed == {"lr": 0.2}
    assert after.ratios == {"lr": pytest.approx((1.0, 0.1))}
    assert repr(binding) == "<Binding SGD; lr = (1, 0.1) × lr 0.2>"
    binding.release()
    assert repr(binding).endswith("released>")
    with pytest.raises(dataclasses.FrozenInstanceError):
        after.changes = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"learning_rate": "lr"}, "SGD has no 'learning_rate' to bind: it has lr, momentum"),
        ({"lr": "rate"}, "the run has no hyperparameter 'rate'"),
        ({"lr": "name"}, "the hyperparameter 'name' is 'x', not a number"),
        ({"foreach": "lr"}, "holds None, which is not a number"),
        ({"maximize": "lr"}, "is 0.1, not a bool"),
        ({"betas.0": "lr"}, "has no 'betas.0'"),
        ({"params": "lr"}, "has no 'params' to bind"),
        ({}, "nothing to bind"),
    ],
)
def test_what_cannot_be_bound_is_refused_in_one_sentence_and_nothing_is_changed(
    names: dict[str, Any], said: str
) -> None:
    optimizer = SGD(parameters(1), lr=0.5)
    with pytest.raises(BindError, match=said):
        instep.torch.bind(TinyRun(lr=0.1, name="x"), optimizer, **names)
    assert values(optimizer) == [0.5]
    assert optimizer.defaults["lr"] == 0.5


def test_a_tuple_as_a_whole_is_refused_with_the_names_of_its_elements() -> None:
    with pytest.raises(BindError, match=r"bind betas\.0 or betas\.1"):
        instep.torch.bind(TinyRun(lr=0.1), AdamW(parameters(1)), betas="lr")


@pytest.mark.parametrize("optimizer", [None, object(), torch.nn.Linear(1, 1)])
def test_what_is_no_optimizer_of_torch_is_refused(optimizer: Any) -> None:
    with pytest.raises(BindError, match=r"not a torch\.optim\.Optimizer"):
        instep.torch.bind(TinyRun(lr=0.1), optimizer, lr="lr")


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(BindError, match='"scale" or "override"'):
        instep.torch.bind(TinyRun(lr=0.1), two_groups(0.1), mode="force", lr="lr")  # type: ignore[arg-type]


def test_a_key_can_be_bound_once() -> None:
    optimizer = two_groups(0.1)
    run = TinyRun(lr=0.1, wd=0.0)
    instep.torch.bind(run, optimizer, lr="lr")
    instep.torch.bind(run, optimizer, weight_decay="wd")
    with pytest.raises(BindError, match="already bound"):
        instep.torch.bind(run, optimizer, lr="lr")


def test_groups_that_differ_in_a_flag_have_no_ratio() -> None:
    first, second = parameters(2)
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": [second], "maximize": True}]
    optimizer = SGD(groups, lr=0.1)
    with pytest.raises(BindError, match="differs from the default in maximize"):
        instep.torch.bind(TinyRun(climb=True), optimizer, maximize="climb")
