"""Loading a checkpoint into a bound optimizer: the live value wins, the checkpoint tells the position."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pytest
import torch
from bind_cases import SCHEDULERS, TinyRun, Training, close, parameters, training, two_groups, values
from torch.optim import SGD

import instep.torch

every_scheduler = pytest.mark.parametrize("name", SCHEDULERS)
either_order = pytest.mark.parametrize("order", ["optimizer first", "scheduler first"])


def saved(bound: Training) -> dict[str, Any]:
    """What `torch.load` gives back of a checkpoint, in another process."""
    file = io.BytesIO()
    torch.save({"optimizer": bound.optimizer.state_dict(), "scheduler": bound.scheduler.state_dict()}, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=False)
    return loaded


def load(into: Training, checkpoint: dict[str, Any], order: str) -> None:
    if order == "scheduler first":
        into.scheduler.load_state_dict(checkpoint["scheduler"])
    into.optimizer.load_state_dict(checkpoint["optimizer"])
    if order == "optimizer first":
        into.scheduler.load_state_dict(checkpoint["scheduler"])


@every_scheduler
@either_order
@pytest.mark.parametrize("tensors", [False, True], ids=["float", "tensor"])
def test_resumed_at_another_value_a_run_goes_on_as_if_it_had_used_that_from_the_start(
    name: str, order: str, tensors: bool
) -> None:
    """The relaunched script constructs its optimizer with the value agreed by then, as `join` gives it."""
    first, twin = training(name, 0.1, tensors=tensors), training(name, 0.04)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, first.optimizer, lr="lr", scheduler=first.scheduler)
    first.steps(2)
    run.agree(lr=0.07)
    first.steps(3)

    resumed = training(name, 0.04, tensors=tensors)
    instep.torch.bind(TinyRun(lr=0.04), resumed.optimizer, lr="lr", scheduler=resumed.scheduler)
    load(resumed, saved(first), order)
    twin.steps(5)
    assert resumed.steps(10) == close(twin.steps(10))


def assert_plain_keys(bound: Training, name: str) -> None:
    """While another value than zero is agreed, a checkpoint has no keys that torch alone would not write."""
    plain = training(name, 0.1)
    own = {"base_lrs"} if name == "ReduceLROnPlateau" else set()
    assert bound.scheduler.state_dict().keys() == plain.scheduler.state_dict().keys() | own
    assert bound.optimizer.param_groups[0].keys() == plain.optimizer.param_groups[0].keys() | {"initial_lr"}


@every_scheduler
@either_order
def test_a_checkpoint_made_while_zero_was_agreed_resumes_at_its_point_at_another_value(name: str, order: str) -> None:
    first, twin = training(name, 0.1), training(name, 0.04)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, first.optimizer, lr="lr", scheduler=first.scheduler)
    first.steps(2)
    run.agree(lr=0.0)
    first.steps(3)

    resumed = training(name, 0.1)
    instep.torch.bind(TinyRun(lr=0.04), resumed.optimizer, lr="lr", scheduler=resumed.scheduler)
    load(resumed, saved(first), order)
    twin.steps(5)
    assert resumed.steps(8) == close(twin.steps(8))
    assert_plain_keys(resumed, name)


@every_scheduler
@either_order
def test_a_run_that_holds_zero_takes_the_point_of_a_checkpoint_made_before(name: str, order: str) -> None:
    bound, twin = training(name, 0.1), training(name, 0.04)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, bound.optimizer, lr="lr", scheduler=bound.scheduler)
    bound.steps(3)
    checkpoint = saved(bound)
    bound.steps(2)
    run.agree(lr=0.0)
    bound.steps(2)
    load(bound, checkpoint, order)
    assert bound.steps(2) == [[0.0, 0.0]] * 2
    run.agree(lr=0.04)
    twin.steps(5)
    assert bound.steps(8) == close(twin.steps(8))


@every_scheduler
@either_order
def test_a_checkpoint_made_while_zero_was_agreed_still_knows_the_point_of_its_schedule(name: str, order: str) -> None:
    first, twin = training(name, 0.1), training(name, 0.04)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, first.optimizer, lr="lr", scheduler=first.scheduler)
    first.steps(2)
    run.agree(lr=0.0)
    first.steps(3)

    resumed = training(name, 0.1)
    again = TinyRun(lr=0.0)
    instep.torch.bind(again, resumed.optimizer, lr="lr", scheduler=resumed.scheduler)
    load(resumed, saved(first), order)
    assert resumed.steps(2) == [[0.0, 0.0]] * 2
    again.agree(lr=0.04)
    assert_plain_keys(resumed, name)
    twin.steps(7)
    assert resumed.steps(8) == close(twin.steps(8))


# ReduceLROnPlateau alone leaves no `initial_lr` in the groups: so its checkpoint tells no point.
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "ReduceLROnPlateau"])
def test_a_checkpoint_made_before_the_run_was_bound_is_taken_at_the_live_value(name: str) -> None:
    plain, twin = training(name, 0.1), training(name, 0.04)
    plain.steps(4)
    resumed = training(name, 0.1)
    instep.torch.bind(TinyRun(lr=0.04), resumed.optimizer, lr="lr", scheduler=resumed.scheduler)
    load(resumed, saved(plain), "optimizer first")
    twin.steps(4)
    assert resumed.steps(8) == close(twin.steps(8))


@every_scheduler
@either_order
def test_a_load_at_the_value_it_was_saved_with_changes_no_bit(name: str, order: str) -> None:
    bound = training(name, 0.1)
    instep.torch.bind(TinyRun(lr=0.07), bound.optimizer, lr="lr", scheduler=bound.scheduler)
    bound.steps(3)
    checkpoint = saved(bound)
    expected = bound.steps(6)
    load(bound, checkpoint, order)
    assert bound.steps(6) == expected


@either_order
def test_an_overridden_value_stands_after_both_loads(order: str) -> None:
    first = training("StepLR", 0.1)
    first.steps(5)
    resumed = training("StepLR", 0.1)
    instep.torch.bind(TinyRun(lr=0.3), resumed.optimizer, lr="lr", scheduler=resumed.scheduler, mode="override")
    load(resumed, saved(first), order)
    assert resumed.steps(3) == [pytest.approx([0.3, 0.03])] * 3
    assert resumed.scheduler.last_epoch == 8


def test_an_earlier_state_dict_is_not_changed_by_a_later_change() -> None:
    bound = training("SequentialLR", 0.1)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, bound.optimizer, lr="lr", scheduler=bound.scheduler)
    taken = bound.scheduler.state_dict()
    before = copy.deepcopy(taken)
    run.agree(lr=0.04)
    assert taken == before


def test_without_a_scheduler_the_live_values_and_ratios_stand_after_a_load() -> None:
    optimizer = two_groups(0.1, weight_decay=0.01)
    run = TinyRun(lr=0.1, wd=0.01)
    instep.torch.bind(run, optimizer, lr="lr", weight_decay="wd")
    old = copy.deepcopy(optimizer.state_dict())
    run.agree(lr=0.05, wd=0.02)
    optimizer.load_state_dict(old)
    assert values(optimizer) == pytest.approx([0.05, 0.005])
    assert values(optimizer, "weight_decay") == [0.02, 0.02]


def test_one_line_says_that_the_live_values_won_and_none_when_nothing_differed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "instep")
    bound = training("StepLR", 0.1)
    run = TinyRun(lr=0.1, wd=0.0)
    instep.torch.bind(run, bound.optimizer, lr="lr", weight_decay="wd", scheduler=bound.scheduler)
    checkpoint = saved(bound)
    load(bound, checkpoint, "optimizer first")
    assert caplog.messages == []
    run.agree(lr=0.04, wd=0.5)
    load(bound, checkpoint, "optimizer first")
    assert caplog.messages == [
        "the live value takes precedence over the checkpoint's: lr 0.04 (checkpoint: 0.1), wd 0.5 (checkpoint: 0)"
    ]


@pytest.mark.parametrize(("saved_at", "live"), [(0.0, 0.1), (0.1, 0.0)])
def test_the_line_tells_an_agreed_zero_from_the_value_before_it(
    saved_at: float, live: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "instep")
    bound = training("StepLR", 0.1)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, bound.optimizer, lr="lr", scheduler=bound.scheduler)
    run.agree(lr=saved_at)
    checkpoint = saved(bound)
    run.agree(lr=live)
    load(bound, checkpoint, "scheduler first")
    assert caplog.messages == [
        f"the live value takes precedence over the checkpoint's: lr {live:g} (checkpoint: {saved_at:g})"
    ]


def test_the_tensor_that_a_compiled_step_reads_is_still_the_one_in_the_groups_after_a_load() -> None:
    shared = torch.tensor(0.1)
    optimizer = SGD([{"params": [p]} for p in parameters(2)], lr=shared, foreach=False)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, optimizer, lr="lr")
    checkpoint = copy.deepcopy(optimizer.state_dict())
    run.agree(lr=0.5)
    optimizer.load_state_dict(checkpoint)
    assert all(group["lr"] is shared for group in optimizer.param_groups)
    assert float(shared) == 0.5


class LateWriter(SGD):
    """Like ZeroRedundancyOptimizer, it writes the checkpoint's groups once more after the hooks have run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for group, saved_group in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group["lr"] = saved_group["lr"]


def test_the_live_value_wins_also_where_an_optimizer_writes_after_the_hooks_until_it_is_released() -> None:
    optimizer = LateWriter(parameters(1), lr=0.1)
    binding = instep.torch.bind(TinyRun(lr=0.3), optimizer, lr="lr")
    old = LateWriter(parameters(1), lr=0.1).state_dict()
    optimizer.load_state_dict(old)
    assert values(optimizer) == [0.3]
    binding.release()
    optimizer.load_state_dict(old)
    assert values(optimizer) == [0.1]


def test_a_float_lr_from_a_checkpoint_gives_way_to_the_tensor_of_the_optimizer() -> None:
    tensors = two_groups(0.1, tensors=True)
    held = [group["lr"] for group in tensors.param_groups]
    instep.torch.bind(TinyRun(lr=0.3), tensors, lr="lr")
    tensors.load_state_dict(two_groups(0.1).state_dict())
    assert [group["lr"] for group in tensors.param_groups] == held
    assert all(group["lr"] is tensor for group, tensor in zip(tensors.param_groups, held, strict=True))
    assert values(tensors) == pytest.approx([0.3, 0.03])
