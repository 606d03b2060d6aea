"""What `bind` does under each learning-rate scheduler of torch."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from bind_cases import SCHEDULERS, TinyRun, Training, close, training, two_groups, values
from torch.optim import SGD
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR

import instep.torch
from instep.errors import BindError

every_scheduler = pytest.mark.parametrize("name", SCHEDULERS)


def assert_same(ran: list[list[float]], twin: list[list[float]]) -> None:
    assert ran == close(twin)


@every_scheduler
@pytest.mark.parametrize("tensors", [False, True], ids=["float", "tensor"])
@pytest.mark.parametrize("change_at", [0, 1, 5, 9])
def test_after_a_change_the_lr_is_that_of_a_run_that_used_the_new_value_from_the_start(
    name: str, tensors: bool, change_at: int
) -> None:
    changed, twin = training(name, 0.1, tensors=tensors), training(name, 0.04)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, changed.optimizer, lr="lr", scheduler=changed.scheduler)
    assert_same(changed.steps(change_at), training(name, 0.1).steps(change_at))
    run.agree(lr=0.04)
    twin.steps(change_at)
    assert_same(changed.steps(14), twin.steps(14))
    assert [float(lr) for lr in changed.scheduler.get_last_lr()] == values(changed.optimizer)


@every_scheduler
@pytest.mark.parametrize("tensors", [False, True], ids=["float", "tensor"])
def test_a_schedule_goes_on_while_zero_is_agreed_and_is_found_again_after_it(name: str, tensors: bool) -> None:
    frozen, twin = training(name, 0.1, tensors=tensors), training(name, 0.04)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, frozen.optimizer, lr="lr", scheduler=frozen.scheduler)
    frozen.steps(2)
    run.agree(lr=0.0)
    assert frozen.steps(6) == [[0.0, 0.0]] * 6
    assert [float(lr) for lr in frozen.scheduler.get_last_lr()] == [0.0, 0.0]
    run.agree(lr=0.04)
    twin.steps(8)
    assert_same(frozen.steps(8), twin.steps(8))


@every_scheduler
def test_a_run_bound_in_the_middle_of_its_schedule_stays_at_that_point(name: str) -> None:
    late, twin = training(name, 0.1), training(name, 0.04)
    late.steps(3)
    twin.steps(3)
    instep.torch.bind(TinyRun(lr=0.04), late.optimizer, lr="lr", scheduler=late.scheduler)
    assert_same(late.steps(10), twin.steps(10))


@every_scheduler
def test_a_change_of_another_hyperparameter_leaves_the_schedule_alone_to_the_bit(name: str) -> None:
    bound, plain = training(name, 0.1), training(name, 0.1)
    run = TinyRun(lr=0.1, wd=0.0)
    instep.torch.bind(run, bound.optimizer, lr="lr", weight_decay="wd", scheduler=bound.scheduler)
    bound.steps(3)
    run.agree(wd=0.5)
    plain.steps(3)
    assert bound.steps(6) == plain.steps(6)


@every_scheduler
def test_override_holds_the_agreed_value_whatever_the_scheduler_computes(name: str) -> None:
    overridden = training(name, 0.1)
    run = TinyRun(lr=0.3)
    instep.torch.bind(run, overridden.optimizer, lr="lr", scheduler=overridden.scheduler, mode="override")
    assert_same(overridden.steps(5), [[0.3, 0.03]] * 5)
    run.agree(lr=0.0)
    assert overridden.steps(2) == [[0.0, 0.0]] * 2
    run.agree(lr=0.2)
    assert_same(overridden.steps(3), [[0.2, 0.02]] * 3)
    assert overridden.scheduler.get_last_lr() == values(overridden.optimizer)


def test_a_warm_up_factor_in_effect_at_the_call_is_not_taken_for_the_groups_ratio() -> None:
    optimizer = two_groups(0.1)
    warmup = lrs.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    instep.torch.bind(TinyRun(lr=0.2), optimizer, lr="lr", scheduler=warmup)
    assert values(optimizer) == pytest.approx([0.02, 0.002])


def test_a_warm_up_inside_the_one_tensor_that_is_default_and_lr_of_all_groups_is_seen_through() -> None:
    shared = torch.tensor(0.1, dtype=torch.float64)
    optimizer = SGD([{"params": p} for p in bind_params()], lr=shared, foreach=False)
    warmup = lrs.LinearLR(optimizer, start_factor=0.1, total_iters=5)
    run = TinyRun(lr=0.2)
    instep.torch.bind(run, optimizer, lr="lr", scheduler=warmup)
    assert values(optimizer) == pytest.approx([0.02, 0.02])
    Training(optimizer, warmup).steps(5)
    run.agree(lr=0.1)
    assert values(optimizer) == pytest.approx([0.1, 0.1])
    assert all(group["lr"] is shared for group in optimizer.param_groups)


def bind_params() -> list[list[torch.nn.Parameter]]:
    made = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    for parameter in made:
        parameter.grad = torch.ones(1)
    return [[parameter] for parameter in made]


def one_cycle(optimizer: torch.optim.Optimizer) -> lrs.LRScheduler:
    return lrs.OneCycleLR(optimizer, max_lr=[1.0, 0.1], total_steps=20, cycle_momentum=False)


def test_one_cycle_is_refused_with_the_cure_also_where_it_is_nested() -> None:
    optimizer = two_groups(0.1)
    cycle = one_cycle(optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    for scheduler in (cycle, lrs.ChainedScheduler([cycle], optimizer)):
        with pytest.raises(BindError, match=r'OneCycleLR .* mode="override"'):
            instep.torch.bind(TinyRun(lr=0.1), optimizer, lr="lr", scheduler=scheduler)
    assert optimizer.state_dict() == before


def test_overriding_one_cycle_the_fastest_group_holds_the_agreed_value() -> None:
    optimizer = two_groups(0.5)
    cycle = one_cycle(optimizer)
    run = TinyRun(lr=0.3)
    instep.torch.bind(run, optimizer, lr="lr", scheduler=cycle, mode="override")
    assert_same(Training(optimizer, cycle).steps(4), [[0.3, 0.03]] * 4)


def test_a_scheduler_towards_an_lr_of_its_own_is_refused() -> None:
    optimizer = two_groups(0.1)
    with pytest.raises(BindError, match="SWALR"):
        instep.torch.bind(TinyRun(lr=0.1), optimizer, lr="lr", scheduler=SWALR(optimizer, swa_lr=0.05))


def test_a_cycle_that_starts_from_zero_is_refused() -> None:
    optimizer = two_groups(0.1)
    cyclic = lrs.CyclicLR(optimizer, 0.0, 0.1, cycle_momentum=False)
    with pytest.raises(BindError, match="base_lr=0"):
        instep.torch.bind(TinyRun(lr=0.1), optimizer, lr="lr", scheduler=cyclic)


def test_a_cycle_that_has_overwritten_the_default_lr_is_refused() -> None:
    optimizer = SGD(bind_params()[0], lr=torch.tensor(0.1), foreach=False)
    cyclic = lrs.CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False)
    with pytest.raises(BindError, match="tensor of its own"):
        instep.torch.bind(TinyRun(lr=0.1), optimizer, lr="lr", scheduler=cyclic)


def test_an_lr_that_is_the_same_tensor_as_its_initial_lr_is_refused() -> None:
    optimizer = two_groups(0.1, tensors=True)
    scheduler = lrs.StepLR(optimizer, 3)
    optimizer.param_groups[0]["initial_lr"] = optimizer.param_groups[0]["lr"]
    with pytest.raises(BindError, match="one tensor"):
        instep.torch.bind(TinyRun(lr=0.1), optimizer, lr="lr", scheduler=scheduler)


def test_a_momentum_that_the_scheduler_cycles_cannot_be_bound_but_overridden() -> None:
    optimizer = two_groups(0.1, momentum=0.9)
    cyclic = lrs.CyclicLR(optimizer, 0.01, 0.1, step_size_up=3, cycle_momentum=True)
    run = TinyRun(momentum=0.5)
    with pytest.raises(BindError, match="cycle_momentum=False"):
        instep.torch.bind(run, optimizer, momentum="momentum", scheduler=cyclic)
    instep.torch.bind(run, optimizer, momentum="momentum", scheduler=cyclic, mode="override")
    Training(optimizer, cyclic).steps(2)
    assert values(optimizer, "momentum") == [0.5, 0.5]


def test_a_scheduler_that_bind_was_not_given_is_refused_since_it_would_undo_a_change() -> None:
    decaying = training("ExponentialLR", 0.1)
    with pytest.raises(BindError, match="scheduler=scheduler"):
        instep.torch.bind(TinyRun(lr=0.1), decaying.optimizer, lr="lr")


def test_a_scheduler_built_after_bind_is_reported_at_the_next_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = two_groups(0.1)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, optimizer, lr="lr")
    lrs.ExponentialLR(optimizer, 0.9)
    for lr in (0.2, 0.3):
        run.agree(lr=lr)
    assert [r.levelname for r in caplog.records if "build the scheduler before bind" in r.message] == ["WARNING"]


def test_a_scheduler_of_another_optimizer_or_none_of_torch_is_refused() -> None:
    with pytest.raises(BindError, match="another optimizer"):
        instep.torch.bind(TinyRun(lr=0.1), two_groups(0.1), lr="lr", scheduler=training("StepLR", 0.1).scheduler)
    with pytest.raises(BindError, match="not a torch"):
        instep.torch.bind(TinyRun(lr=0.1), two_groups(0.1), lr="lr", scheduler=object())  # type: ignore[arg-type]


def test_two_schedulers_that_are_stepped_apart_are_scaled_together() -> None:
    def build(lr: float) -> tuple[SGD, lrs.LRScheduler, lrs.ReduceLROnPlateau]:
        optimizer = two_groups(lr)
        return (
            optimizer,
            lrs.LinearLR(optimizer, 0.1, total_iters=4),
            lrs.ReduceLROnPlateau(optimizer, patience=0),
        )

    def step(optimizer: SGD, warmup: lrs.LRScheduler, plateau: lrs.ReduceLROnPlateau) -> list[float]:
        optimizer.step()
        warmup.step()
        plateau.step(1.0)
        return values(optimizer)

    changed, twin = build(0.1), build(0.04)
    run = TinyRun(lr=0.1)
    instep.torch.bind(run, changed[0], lr="lr", scheduler=changed[1:])
    step(*changed)
    step(*twin)
    run.agree(lr=0.04)
    for _ in range(5):
        assert step(*changed) == pytest.approx(step(*twin), rel=1e-9, abs=1e-15)


def test_a_default_lr_of_zero_gives_a_schedule_no_scale() -> None:
    optimizer = SGD(bind_params()[0], lr=0.0)
    with pytest.raises(BindError, match="default lr is 0"):
        instep.torch.bind(TinyRun(lr=0.1), optimizer, lr="lr", scheduler=lrs.StepLR(optimizer, 3))


@every_scheduler
def test_a_bound_scheduler_looks_copies_and_pickles_like_a_plain_one(name: str) -> None:
    bound, plain = training(name, 0.1), training(name, 0.1)
    if name == "ReduceLROnPlateau":  # so that its checkpoint tells the scale of its floor
        plain.scheduler.base_lrs = [0.1, 0.1 * 0.1]
    keys = plain.scheduler.state_dict().keys()
    instep.torch.bind(TinyRun(lr=0.1), bound.optimizer, lr="lr", scheduler=bound.scheduler)
    assert bound.scheduler.state_dict().keys() == keys
    assert isinstance(bound.scheduler, type(plain.scheduler))
    assert type(bound.scheduler).__name__ == type(plain.scheduler).__name__
    assert type(copy.deepcopy(bound.scheduler)) is type(plain.scheduler)
    assert type(copy.copy(bound.scheduler)) is type(plain.scheduler)


def test_a_bound_scheduler_can_be_pickled() -> None:
    bound = training("StepLR", 0.1)
    instep.torch.bind(TinyRun(lr=0.1), bound.optimizer, lr="lr", scheduler=bound.scheduler)
    state = pickle.loads(pickle.dumps(bound.scheduler.state_dict()))
    assert state == bound.scheduler.state_dict()


def test_released_a_scheduler_is_of_its_own_class_again_and_overridden_no_more() -> None:
    freed = training("ExponentialLR", 0.1)
    binding = instep.torch.bind(TinyRun(lr=0.1), freed.optimizer, lr="lr", scheduler=freed.scheduler, mode="override")
    freed.steps(3)
    binding.release()
    assert type(freed.scheduler) is lrs.ExponentialLR
    assert_same(freed.steps(2), [[0.1, 0.01], [0.09, 0.009]])


def test_bindings_on_one_scheduler_can_be_released_in_any_order() -> None:
    freed = training("ExponentialLR", 0.1)
    run = TinyRun(lr=0.1, wd=0.0)
    below = instep.torch.bind(run, freed.optimizer, lr="lr", scheduler=freed.scheduler, mode="override")
    above = instep.torch.bind(run, freed.optimizer, weight_decay="wd", scheduler=freed.scheduler)
    below.release()
    assert_same(freed.steps(2), [[0.1, 0.01], [0.09, 0.009]])
    above.release()
    assert_same(freed.steps(1), [[0.081, 0.0081]])
