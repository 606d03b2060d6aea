"""The learning-rate schedulers a binding was given: which can be scaled, and scaling one.

A scheduler computes from numbers in units of lr: the groups' bases, and its own floors and ceilings.
Multiplying all of them multiplies the whole curve, and leaves where it stands on the curve alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import SWALR

from instep.errors import BindError

from ._field import Group, fresh_like, number_in, rounded_like
from ._ratio import rebased
from ._wrapped import unwrapped_optimizer, unwrapped_scheduler

PER_GROUP = ("max_lrs", "min_lrs")
FOR_ALL_GROUPS = "eta_min"


def checked_schedulers(given: object, optimizer: Optimizer) -> tuple[LRScheduler, ...]:
    """What was passed as `scheduler`, as a tuple. BindError unless each is a scheduler of `optimizer`."""
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
    """The schedulers that compute: those nested in SequentialLR and ChainedScheduler, and the others."""
    for root in roots:
        nested = getattr(root, "_schedulers", None)
        if nested is None:
            yield root
        else:
            yield from leaves_of(nested)


def everything_in(roots: Sequence[LRScheduler]) -> Iterator[LRScheduler]:
    """The given schedulers and all that are nested in them."""
    for root in roots:
        yield root
        yield from everything_in(getattr(root, "_schedulers", ()))


def refuse_unscalable(leaves: Sequence[LRScheduler]) -> None:
    """BindError for a schedule that does not start from the optimizer's lr, which so cannot scale it."""
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
    """BindError when a scheduler writes the momentum that `key` is to hold."""
    cycled = ("momentum", "betas.0", "betas")
    if key in cycled and any(getattr(leaf, "cycle_momentum", False) for leaf in leaves):
        raise BindError(f"the scheduler cycles {key}, which is bound too: pass cycle_momentum=False to the scheduler")


def peak_lrs(roots: Sequence[LRScheduler], groups: Sequence[Group]) -> list[float] | None:
    """The groups' highest lrs, under a scheduler that replaced those they were constructed with."""
    for leaf in leaves_of(roots):
        if isinstance(leaf, OneCycleLR):
            return [float(group["max_lr"]) for group in groups]
        if isinstance(leaf, CyclicLR):
            return [number_in(peak) for peak in leaf.max_lrs]
    return None


def publish_lrs(roots: Sequence[LRScheduler], lrs: Sequence[Any]) -> None:
    """Make `get_last_lr()` answer with what the groups hold."""
    for scheduler in everything_in(roots):
        scheduler._last_lr = [fresh_like(lr, number_in(lr)) for lr in lrs]


class Leaf:
    """One scheduler's numbers in units of lr, moved together to another base."""

    def __init__(self, scheduler: LRScheduler, units: Sequence[float], ratios: Sequence[float]) -> None:
        self._scheduler: Any = scheduler
        bases: Sequence[Any] | None = getattr(scheduler, "base_lrs", None)
        if bases is None:
            self.ratios = list(ratios)
        else:
            self.ratios = [number_in(base) / unit for base, unit in zip(bases, units, strict=False)]

    def adopt(self, anchor: float) -> None:
        """Give a scheduler without bases (ReduceLROnPlateau) some, so that its checkpoint tells its scale."""
        if not hasattr(self._scheduler, "base_lrs"):
            self._scheduler.base_lrs = [ratio * anchor for ratio in self.ratios]

    def rescale(self, anchor: float) -> None:
        """Move every number from the bases the scheduler has to `ratio x anchor`.

        Lists and tensors are replaced, not changed: a state dict shares them with the scheduler.
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
