"""Being told when an optimizer was loaded, and when a scheduler has stepped or was loaded.

torch has no hooks for a scheduler. It gets a class of its own, derived from its class. An attribute on the
instance would be simpler, but `state_dict()` of a scheduler is its `__dict__`: it would be in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Told = Callable[[], None]


def watch(scheduler: LRScheduler, *, before_step: Told, after_step: Told, after_load: Told) -> Callable[[], None]:
    """Call these around `step()` and after `load_state_dict()` of this one scheduler, until released.

    Returns the function that releases it. `isinstance`, the class's name, `state_dict()` and pickling stay as
    they were; copies are not watched.
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
        # Another watcher may sit on top by now; then ours stays below it and its listeners ignore what they
        # hear.
        if type(scheduler) is watched:
            scheduler.__class__ = plain

    return release


def watch_loads(optimizer: Optimizer, told: Told) -> Callable[[], None]:
    """Call `told` after each `load_state_dict()` of the optimizer, until the returned function is called."""
    if type(optimizer).load_state_dict is Optimizer.load_state_dict:
        return optimizer.register_load_state_dict_post_hook(lambda _: told()).remove
    # A load of its own may write after the hooks have run, as ZeroRedundancyOptimizer's does. An optimizer's
    # `__dict__` is not its state dict, so here an attribute will do.
    plain = optimizer.load_state_dict

    def load_state_dict(*args: Any, **kwargs: Any) -> None:
        plain(*args, **kwargs)
        told()

    optimizer.load_state_dict = load_state_dict  # type: ignore[method-assign]

    def release() -> None:
        if vars(optimizer).get("load_state_dict") is load_state_dict:
            del optimizer.load_state_dict

    return release
