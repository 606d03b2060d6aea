"""The learning-rate schedulers of a binding: which ones can be scaled, scaling them, and hooks into them.

A scheduler computes from numbers in units of lr: the groups' bases, and its own floors and ceilings. Multiplying all of
them scales the whole curve and keeps the position on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import SWALR

from instep.errors import BindError

from .field import Group, fresh_like, number_in, rounded_like
from .ratio import rebased

PER_GROUP = ("max_lrs", "min_lrs")
FOR_ALL_GROUPS = "eta_min"


Callback = Callable[[], None]


def checked_schedulers(given: object, optimizer: Optimizer) -> tuple[LRScheduler, ...]:
    """The `scheduler` argument as a tuple. Raises BindError unless each one is a scheduler of `optimizer`."""
    if given is None:
        return ()
    wrapped = tuple(given) if isinstance(given, tuple | list) else (given,)
    roots = tuple(unwrapped_scheduler(root) for root in wrapped)
    for root in roots:
        if not isinstance(root, LRScheduler):
            raise BindError(
                f"scheduler is a {type(root).__name__}, not a torch.optim.lr_scheduler.LRScheduler: "
                "pass the torch scheduler that it wraps"
            )
        if unwrapped_optimizer(root.optimizer) is not optimizer:
            raise BindError(f"the {type(root).__name__} steers another optimizer: pass the one built on this optimizer")
    return roots


def leaves_of(roots: Sequence[LRScheduler]) -> Iterator[LRScheduler]:
    """The schedulers that compute an lr, including those nested in SequentialLR and ChainedScheduler."""
    for root in roots:
        nested = getattr(root, "_schedulers", None)
        if nested is None:
            yield root
        else:
            yield from leaves_of(nested)


def everything_in(roots: Sequence[LRScheduler]) -> Iterator[LRScheduler]:
    """The given schedulers and all nested ones."""
    for root in roots:
        yield root
        yield from everything_in(getattr(root, "_schedulers", ()))


def refuse_unscalable(leaves: Sequence[LRScheduler]) -> None:
    """Raises BindError for a schedule that does not start from the optimizer's lr and so cannot be scaled by it."""
    for leaf in leaves:
        name = type(leaf).__name__
        if isinstance(leaf, OneCycleLR | SWALR):
            raise BindError(
                f"{name} computes the lr from numbers of its own, so the agreed lr cannot scale it: "
                'use another scheduler, or mode="override" to hold the agreed lr and ignore the schedule'
            )
        if isinstance(leaf, CyclicLR) and any(number_in(base) == 0 for base in leaf.base_lrs):
            raise BindError(
                f"{name} with base_lr=0 has no ratio to the agreed lr: "
                'give it a base_lr above 0, or use mode="override"'
            )


def refuse_cycled(leaves: Sequence[LRScheduler], key: str) -> None:
    """Raises BindError if a scheduler writes the momentum under `key`."""
    cycled = ("momentum", "betas.0", "betas")
    if key in cycled and any(getattr(leaf, "cycle_momentum", False) for leaf in leaves):
        raise BindError(f"the scheduler cycles {key}, which is bound too: pass cycle_momentum=False to the scheduler")


def peak_lrs(roots: Sequence[LRScheduler], groups: Sequence[Group]) -> list[float] | None:
    """The groups' peak lrs, if a scheduler replaced the lrs that they were created with; else None."""
    for leaf in leaves_of(roots):
        if isinstance(leaf, OneCycleLR):
            return [float(group["max_lr"]) for group in groups]
        if isinstance(leaf, CyclicLR):
            return [number_in(peak) for peak in leaf.max_lrs]
    return None


def publish_lrs(roots: Sequence[LRScheduler], lrs: Sequence[Any]) -> None:
    """Makes `get_last_lr()` return what the groups hold."""
    for scheduler in everything_in(roots):
        scheduler._last_lr = [fresh_like(lr, number_in(lr)) for lr in lrs]


class Leaf:
    """One scheduler's numbers in units of lr, scaled together."""

    def __init__(self, scheduler: LRScheduler, units: Sequence[float], ratios: Sequence[float]) -> None:
        self._scheduler: Any = scheduler
        bases: Sequence[Any] | None = getattr(scheduler, "base_lrs", None)
        if bases is None:
            self.ratios = list(ratios)
        else:
            self.ratios = [number_in(base) / unit for base, unit in zip(bases, units, strict=False)]

    def adopt(self, anchor: float) -> None:
        """Adds bases to a scheduler without them (ReduceLROnPlateau): its checkpoints then have its scale."""
        if not hasattr(self._scheduler, "base_lrs"):
            self._scheduler.base_lrs = [ratio * anchor for ratio in self.ratios]

    def rescale(self, anchor: float) -> None:
        """Scales every number from the scheduler's current bases to `ratio x anchor`.

        Replaces lists and tensors instead of changing them: a state dict shares them with the scheduler.
        """
        own = self._scheduler
        held = own.base_lrs
        bases = [number_in(base) for base in held]
        targets = [rounded_like(b, r * anchor) for b, r in zip(held, self.ratios, strict=False)]
        if bases == targets:
            return
        moves = list(zip(bases, targets, strict=False))
        for name in PER_GROUP:
            if hasattr(own, name):
                pairs = zip(getattr(own, name), moves, strict=False)
                setattr(own, name, [fresh_like(v, rebased(number_in(v), *move)) for v, move in pairs])
        if hasattr(own, FOR_ALL_GROUPS):
            move = next((move for move in moves if move[0] != 0), (1.0, 1.0))
            setattr(own, FOR_ALL_GROUPS, rebased(getattr(own, FOR_ALL_GROUPS), *move))
        own.base_lrs = [fresh_like(b, t) for b, t in zip(held, targets, strict=False)]


def watch(
    scheduler: LRScheduler, *, before_step: Callback, after_step: Callback, after_load: Callback
) -> Callable[[], None]:
    """Calls these around `step()` and after `load_state_dict()`. Returns a function that removes the hooks.

    torch has no such hooks. The scheduler gets a class derived from its own: `isinstance`, the class name,
    `state_dict()` and pickling do not change, and copies are not watched. An attribute on the instance would be in
    every checkpoint, because the `state_dict()` of a scheduler is its `__dict__`.
    """
    plain: Any = type(scheduler)

    def step(self: Any, *args: Any, **kwargs: Any) -> None:
        before_step()
        try:
            plain.step(self, *args, **kwargs)
        finally:
            after_step()

    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        plain.load_state_dict(self, state_dict)
        after_load()

    def reduce_to_plain(self: Any, protocol: Any) -> Any:
        made: Any = plain.__reduce_ex__(self, protocol)
        return (made[0], (plain, *made[1][1:]), *made[2:])

    body = {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "__reduce_ex__": reduce_to_plain,
        "step": step,
        "load_state_dict": load_state_dict,
    }
    watched = type(plain.__name__, (plain,), body)
    scheduler.__class__ = watched

    def release() -> None:
        # If another watcher was installed on top, this class stays below it, and its callbacks ignore the calls.
        if type(scheduler) is watched:
            scheduler.__class__ = plain

    return release


def watch_loads(optimizer: Optimizer, on_load: Callback) -> Callable[[], None]:
    """Calls `on_load` after each `load_state_dict()` of the optimizer. Returns a function that stops it."""
    if type(optimizer).load_state_dict is Optimizer.load_state_dict:
        return optimizer.register_load_state_dict_post_hook(lambda _: on_load()).remove
    # An overridden load may write after the hooks have run, as ZeroRedundancyOptimizer's does. An optimizer's
    # `__dict__` is not its state dict, so an attribute is enough here.
    plain = optimizer.load_state_dict

    def load_state_dict(*args: Any, **kwargs: Any) -> None:
        plain(*args, **kwargs)
        on_load()

    optimizer.load_state_dict = load_state_dict  # type: ignore[method-assign]

    def release() -> None:
        if vars(optimizer).get("load_state_dict") is load_state_dict:
            del optimizer.load_state_dict

    return release


def unwrapped_optimizer(optimizer: Any) -> Any:
    """The torch optimizer inside wrappers (Accelerate, Lightning Fabric and others) that have it as `.optimizer`."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        if getattr(optimizer, "param_groups", None) is not inner.param_groups:
            break
        optimizer = inner
    return optimizer


def unwrapped_scheduler(scheduler: Any) -> Any:
    """The torch scheduler inside wrappers that have it as `.scheduler`."""
    inner = getattr(scheduler, "scheduler", None)
    return inner if isinstance(inner, LRScheduler) and not isinstance(scheduler, LRScheduler) else scheduler
