"""Schedulers and gradient scalers that a Checkpointer was not given: a resume would lose their state."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ._wrapped import unwrapped_optimizer

_KINDS: Final = (LRScheduler, GradScaler)


def left_out(parts: Mapping[str, Any]) -> list[str]:
    """A sentence for each scheduler of an optimizer among `parts`, and each gradient scaler, that is not among them.

    Looks through all objects of the process, so it takes some milliseconds. One that is inside a part or another
    scheduler counts as held: that saves it.
    """
    inside = [thing for part in parts.values() for thing in _inside(part)]
    held = {id(thing) for thing in inside}
    steered = {id(unwrapped_optimizer(thing)) for thing in inside if isinstance(thing, Optimizer)}
    living = [thing for thing in gc.get_objects() if issubclass(type(thing), _KINDS)]
    nested = {id(inner) for thing in living for inner in _inside(thing) if inner is not thing}
    missing = [thing for thing in living if id(thing) not in held | nested]
    return [
        *(_of_scheduler(it) for it in missing if isinstance(it, LRScheduler) and _optimizer_of(it) in steered),
        *(_of_scaler(it) for it in missing if isinstance(it, GradScaler) and it.is_enabled() and steered),
    ]


def _inside(thing: Any) -> Iterator[Any]:
    """The thing itself and what its attributes hold, lists of them included."""
    yield thing
    for value in getattr(thing, "__dict__", {}).values():
        yield from value if isinstance(value, list | tuple) else (value,)


def _optimizer_of(scheduler: LRScheduler) -> int:
    """Its identity; 0 for a scheduler that is still being made."""
    optimizer = getattr(scheduler, "optimizer", None)
    return id(unwrapped_optimizer(optimizer)) if optimizer is not None else 0


def _of_scheduler(scheduler: LRScheduler) -> str:
    return (
        f"the checkpoints do not hold the {type(scheduler).__name__}: a run that resumes starts its schedule from the "
        "beginning; give it to the Checkpointer, as in Checkpointer(..., scheduler=scheduler)"
    )


def _of_scaler(scaler: GradScaler) -> str:
    return (
        f"the checkpoints do not hold the {type(scaler).__name__}: a run that resumes starts from its first loss scale "
        "and skips steps until the scale fits; give it to the Checkpointer, as in Checkpointer(..., scaler=scaler)"
    )
