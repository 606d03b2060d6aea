"""`bind`: an optimizer that holds the agreed values from now on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from instep.errors import BindError

from .bound_param import BoundParam
from .ratio import Number, why_unusable
from .request import Ratios, SteeredRun, agreed_in, checked_optimizer, checked_value, plan_params, watch_drift
from .schedulers import checked_schedulers, watch, watch_loads

logger = logging.getLogger("instep")

_CURES = {
    "lr": (
        "Another part of the script writes it, so a change of the agreed value has no effect: give bind that "
        "schedule as scheduler= (a function of the step is a LambdaLR), or do not bind lr and use run.config yourself"
    ),
    "": (
        "Another part of the script writes it, so a change of the agreed value has no effect: remove that, or do "
        "not bind it and use run.config yourself"
    ),
}

# Two bindings of one key would each take what the other wrote for the user's own ratio.
_bound: WeakKeyDictionary[Optimizer, set[str]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class BindingStatistics:
    """What a binding has done so far.

    `changes` counts agreed changes that were applied, `loads` the loads of the optimizer or a scheduler after
    which the agreed values were put back, `refused` the agreed values that were no usable number and were not
    applied.
    """

    agreed: Mapping[str, Number]
    ratios: Mapping[str, tuple[float, ...]]
    changes: int
    loads: int
    refused: int


class Binding:
    """What `bind` returns. It needs no keeping: the run and the optimizer keep it alive."""

    def __init__(
        self, optimizer: Optimizer, params: Sequence[BoundParam], roots: Sequence[LRScheduler], mode: str
    ) -> None:
        self._optimizer = optimizer
        self._params = tuple(params)
        self._roots = tuple(roots)
        self._mode = mode
        self._changes = self._loads = self._refused = 0
        self._warned = False
        self._undo: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        parts = [type(self._optimizer).__name__, *map(repr, self._params)]
        if self._roots:
            parts.append(f"{self._mode} {', '.join(type(root).__name__ for root in self._roots)}")
        return f"<Binding {'; '.join(parts)}{'' if self._undo else '; released'}>"

    @property
    def statistics(self) -> BindingStatistics:
        """A snapshot; it does not change afterwards."""
        return BindingStatistics(
            agreed={str(param.field): param.agreed for param in self._params if param.agreed is not None},
            ratios={str(param.field): tuple(param.ratios) for param in self._params},
            changes=self._changes,
            loads=self._loads,
            refused=self._refused,
        )

    def release(self) -> None:
        """Stop steering. The optimizer keeps the values it has, an overridden scheduler has its effect again.

        The optimizer's defaults stay at the values agreed last, so binding it anew finds the same ratios.
        """
        while self._undo:
            self._undo.pop()()

    def _start(self, run: SteeredRun, values: Sequence[Number], *, chosen: bool) -> None:
        """`chosen`: the ratios are what the script has given."""
        keys = {str(param.field) for param in self._params}
        _bound.setdefault(self._optimizer, set()).update(keys)
        self._undo.append(lambda: _bound[self._optimizer].difference_update(keys))
        self._undo.append(watch_loads(self._optimizer, self._loaded))
        for root in self._roots:
            listeners = {"before_step": self._before_step, "after_step": self._after_step}
            self._undo.append(watch(root, **listeners, after_load=self._schedule_loaded))
        for param, value in zip(self._params, values, strict=True):
            param.apply(value)
            param.note()
            if not chosen and 1.0 not in param.ratios:
                logger.warning("no group has the optimizer's default %s; bound as %r", param.field, param)
        run.on_change(self._changed)
        self._undo.append(watch_drift(run, self._drift))

    def _drift(self) -> dict[str, str]:
        """By hyperparameter, what the optimizer holds in its place, and what to do about that."""
        found = {param: text for param in self._params if (text := param.drift()) is not None}
        return {
            param.name: f"{text}. {_CURES['lr' if param.field.key == 'lr' else '']}" for param, text in found.items()
        }

    def _changed(self, _old: object, new: object) -> None:
        if not self._undo:
            return
        applied = [self._apply(param, agreed_in(new, param.name)) for param in self._params]
        if any(applied):
            self._changes += 1
            self._warn_of_stranger()

    def _apply(self, param: BoundParam, value: Any) -> bool:
        if value == param.agreed and type(value) is type(param.agreed):
            return False
        reason = why_unusable(value, param.kind)
        if reason is not None:
            self._refused += 1
            logger.error("%s %s; the optimizer keeps %s=%r", param.name, reason, param.field, param.agreed)
            return False
        param.apply(value)
        param.note()
        return True

    def _warn_of_stranger(self) -> None:
        steered = any(param.field.key == "lr" for param in self._params)
        strange = any("initial_lr" in group for group in self._optimizer.param_groups)
        if steered and strange and not self._roots and not self._warned:
            self._warned = True
            logger.warning(
                "the groups have initial_lr, as from a scheduler that would undo the agreed lr: "
                "build the scheduler before bind, and pass it as scheduler="
            )

    def _loaded(self) -> None:
        if not self._undo:
            return
        self._loads += 1
        stale = [(param, saved) for param in self._params if (saved := param.reload()) is not None]
        for param in self._params:
            param.note()
        if stale:
            won = ", ".join(f"{param.name} {param.agreed:g} (checkpoint: {saved:g})" for param, saved in stale)
            logger.info("the live value won over the checkpoint's: %s", won)

    def _schedule_loaded(self) -> None:
        if self._undo:
            self._loads += 1
            for param in self._params:
                param.reload_schedule()
                param.note()

    def _before_step(self) -> None:
        if self._undo:
            for param in self._params:
                param.before_step()

    def _after_step(self) -> None:
        if self._undo:
            for param in self._params:
                param.after_step()
                param.note()


def bind(
    run: SteeredRun,
    optimizer: Optimizer,
    *,
    scheduler: LRScheduler | Sequence[LRScheduler] | None = None,
    mode: Literal["scale", "override"] = "scale",
    ratio: Ratios | None = None,
    **names: str,
) -> Binding:
    """Make `optimizer` hold the agreed values from this call on: `bind(run, optimizer, lr="lr")`.

    A keyword is a key of the parameter groups, its value the name of a hyperparameter in `run.config`; one
    element of a tuple is `**{"betas.0": "beta1"}`. A group's ratio is its value over
    `optimizer.defaults[key]` at the call, and the group holds ratio x agreed value: at once, after every
    change, and after `load_state_dict`, where the live value wins over the checkpoint's. So bind before
    loading a checkpoint; or give the ratios as `ratio=`: one number, one for each group, or a mapping by key.
    A group then holds its ratio x agreed value, whatever it held. An agreed value that is no usable number (a
    run without a schema takes any) is logged as an error and not applied.

    Now and then a boundary looks whether the optimizer still holds what it should. Where something else writes
    it, the log, the receipt and `instep status` say so; it is not written over.

    With `scheduler` (or several) and mode "scale", the agreed lr scales the scheduler's whole curve, floors
    such as `eta_min` included, and what the groups hold is ratio x agreed value x the schedule's share at
    that point. With mode "override" the schedule has no effect: the values are written again after each of
    its steps.

    Limits: numbers inside a LambdaLR's function or a scheduler of your own, beyond `base_lrs`, are not
    scaled. A scheduler built later is not known: build it first. BindError, before anything was changed, for
    what cannot be steered.
    """
    if mode not in ("scale", "override"):
        raise BindError(f'mode is {mode!r}: use "scale" or "override"')
    optimizer = checked_optimizer(optimizer)
    roots = checked_schedulers(scheduler, optimizer)
    params = plan_params(optimizer, names, roots, override=mode == "override", ratio=ratio)
    taken = _bound.get(optimizer, set()).intersection(str(param.field) for param in params)
    if taken:
        raise BindError(f"{', '.join(sorted(taken))} of this optimizer is bound already: release() that binding first")
    values = [checked_value(run.config, param) for param in params]
    binding = Binding(optimizer, params, roots, mode)
    binding._start(run, values, chosen=ratio is not None)
    return binding
