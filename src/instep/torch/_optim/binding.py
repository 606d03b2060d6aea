"""`bind`: makes an optimizer hold the agreed values."""

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

_FIXES = {
    "lr": (
        "Another part of the script overwrites it, so a change of the agreed value has no effect: pass that schedule "
        "to bind as scheduler= (a function of the step is a LambdaLR), or do not bind lr and use run.config yourself"
    ),
    "": (
        "Another part of the script overwrites it, so a change of the agreed value has no effect: remove that code, or "
        "do not bind the key and use run.config yourself"
    ),
}

# With two bindings of one key, each would take what the other wrote for the user's own ratio.
_bound: WeakKeyDictionary[Optimizer, set[str]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class BindingStatistics:
    """Counts of what a binding has done.

    `changes`: agreed changes that were applied. `loads`: loads of the optimizer or a scheduler after which the agreed
    values were restored. `refused`: agreed values that were not applied because they are not usable numbers.
    """

    agreed: Mapping[str, Number]
    ratios: Mapping[str, tuple[float, ...]]
    changes: int
    loads: int
    refused: int


class Binding:
    """The result of `bind`. The run and the optimizer keep it alive, so the script need not."""

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
        """A snapshot of what this binding has done."""
        return BindingStatistics(
            agreed={str(param.field): param.agreed for param in self._params if param.agreed is not None},
            ratios={str(param.field): tuple(param.ratios) for param in self._params},
            changes=self._changes,
            loads=self._loads,
            refused=self._refused,
        )

    def release(self) -> None:
        """Stops steering. The optimizer keeps its values; an overridden scheduler takes effect again.

        The optimizer's defaults keep the last agreed values, so binding it again finds the same ratios.
        """
        while self._undo:
            self._undo.pop()()

    def _start(self, run: SteeredRun, values: Sequence[Number], *, chosen: bool) -> None:
        """`chosen`: the script gave the ratios."""
        keys = {str(param.field) for param in self._params}
        _bound.setdefault(self._optimizer, set()).update(keys)
        self._undo.append(lambda: _bound[self._optimizer].difference_update(keys))
        self._undo.append(watch_loads(self._optimizer, self._loaded))
        for root in self._roots:
            listeners = {"before_step": self._before_step, "after_step": self._after_step}
            self._undo.append(watch(root, **listeners, after_load=self._schedule_loaded))
        for param, value in zip(self._params, values, strict=True):
            param.apply(value)
            param.mark_expected()
            if not chosen and 1.0 not in param.ratios:
                logger.warning("no group has the optimizer's default %s; bound as %r", param.field, param)
        run.on_change(self._changed)
        self._undo.append(watch_drift(run, self._drift))

    def _drift(self) -> dict[str, str]:
        """By hyperparameter: what the optimizer holds instead, and how to fix it."""
        found = {param: text for param in self._params if (text := param.drift()) is not None}
        return {
            param.name: f"{text}. {_FIXES['lr' if param.field.key == 'lr' else '']}" for param, text in found.items()
        }

    def _changed(self, _old: object, new: object) -> None:
        if not self._undo:
            return
        applied = [self._apply(param, agreed_in(new, param.name)) for param in self._params]
        if any(applied):
            self._changes += 1
            self._warn_of_unknown_scheduler()

    def _apply(self, param: BoundParam, value: Any) -> bool:
        if value == param.agreed and type(value) is type(param.agreed):
            return False
        reason = why_unusable(value, param.kind)
        if reason is not None:
            self._refused += 1
            logger.error("%s %s; the optimizer keeps %s=%r", param.name, reason, param.field, param.agreed)
            return False
        param.apply(value)
        param.mark_expected()
        return True

    def _warn_of_unknown_scheduler(self) -> None:
        steered = any(param.field.key == "lr" for param in self._params)
        scheduled = any("initial_lr" in group for group in self._optimizer.param_groups)
        if steered and scheduled and not self._roots and not self._warned:
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
            param.mark_expected()
        if stale:
            won = ", ".join(f"{param.name} {param.agreed:g} (checkpoint: {saved:g})" for param, saved in stale)
            logger.info("the live value takes precedence over the checkpoint's: %s", won)

    def _schedule_loaded(self) -> None:
        if self._undo:
            self._loads += 1
            for param in self._params:
                param.reload_schedule()
                param.mark_expected()

    def _before_step(self) -> None:
        if self._undo:
            for param in self._params:
                param.before_step()

    def _after_step(self) -> None:
        if self._undo:
            for param in self._params:
                param.after_step()
                param.mark_expected()


def bind(
    run: SteeredRun,
    optimizer: Optimizer,
    *,
    scheduler: LRScheduler | Sequence[LRScheduler] | None = None,
    mode: Literal["scale", "override"] = "scale",
    ratio: Ratios | None = None,
    **names: str,
) -> Binding:
    """Makes `optimizer` hold the agreed values from this call on: `bind(run, optimizer, lr="lr")`.

    A keyword is a key of the parameter groups; its value is the name of a hyperparameter in `run.config`. For one
    element of a tuple, write `**{"betas.0": "beta1"}`.

    A group's ratio is its value divided by `optimizer.defaults[key]` at this call. The group then holds ratio x agreed
    value: at once, after every change, and after `load_state_dict`, where the live value wins over the checkpoint's. So
    call bind before loading a checkpoint, or pass the ratios as `ratio=`: one number, one per group, or a mapping by
    key. An agreed value that is not a usable number (a run without a schema accepts any) is logged as an error and not
    applied.

    Boundaries check from time to time whether the optimizer still holds the expected values. If other code changed
    them, the log, the receipt and `instep status` report it; bind does not overwrite them.

    With `scheduler` (one or several) and mode "scale", the agreed lr scales the scheduler's whole curve, including
    floors such as `eta_min`: the groups hold ratio x agreed value x the schedule's factor at this point. With mode
    "override", the schedule has no effect: the values are written again after each of its steps.

    Limit: numbers inside a LambdaLR's function, or in a custom scheduler beyond `base_lrs`, are not scaled. A scheduler
    that is created later is not known, so create it first.

    Raises BindError, before anything is changed, for what cannot be steered.
    """
    if mode not in ("scale", "override"):
        raise BindError(f'mode is {mode!r}: use "scale" or "override"')
    optimizer = checked_optimizer(optimizer)
    roots = checked_schedulers(scheduler, optimizer)
    params = plan_params(optimizer, names, roots, override=mode == "override", ratio=ratio)
    taken = _bound.get(optimizer, set()).intersection(str(param.field) for param in params)
    if taken:
        raise BindError(f"{', '.join(sorted(taken))} of this optimizer is already bound: release() that binding first")
    values = [checked_value(run.config, param) for param in params]
    binding = Binding(optimizer, params, roots, mode)
    binding._start(run, values, chosen=ratio is not None)
    return binding
