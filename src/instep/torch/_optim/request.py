"""Checks the arguments of `bind` and chooses how each key is bound. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler

from instep.errors import BindError
from instep.worker.run import Run

from .bound_param import BoundParam, OverriddenParam, ScheduledParam, checked_ratio
from .field import Field, Group, number_in
from .ratio import Number, ValueKind, why_unusable
from .schedulers import leaves_of, peak_lrs, refuse_cycled, refuse_unscalable, unwrapped_optimizer

LR = Field("lr")

Ratios = float | Sequence[float] | Mapping[str, float | Sequence[float]]

_ABSENT = object()


def checked_optimizer(given: object) -> Optimizer:
    """The torch optimizer without wrappers. Raises BindError if it has no hook for loads."""
    optimizer = unwrapped_optimizer(given)
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_load_state_dict_post_hooks"):
        raise BindError(
            f"the optimizer is a {type(optimizer).__name__}, not a torch.optim.Optimizer: "
            "pass the torch optimizer that it wraps"
        )
    return optimizer


def checked_value(config: object, param: BoundParam) -> Number:
    """The agreed value for `param`. Raises BindError if the run has none, or one that does not fit the key."""
    if not is_agreed(config, param.name):
        raise BindError(
            f"the run has no hyperparameter {param.name!r} to bind {param.field} to: "
            "add it to the schema, or set it before the run starts"
        )
    value: Any = agreed_in(config, param.name)
    reason = why_unusable(value, param.kind)
    if reason is not None:
        raise BindError(f"the hyperparameter {param.name!r} {reason}: {param.field} of the optimizer needs one")
    return value  # type: ignore[no-any-return]


def plan_params(
    optimizer: Optimizer,
    names: Mapping[str, str],
    roots: Sequence[LRScheduler],
    *,
    override: bool,
    ratio: Ratios | None = None,
) -> list[BoundParam]:
    """One BoundParam per key of `names`. Raises BindError for a key or a `ratio` that is not usable."""
    if not names:
        raise BindError('nothing to bind: name at least one key, as in bind(run, optimizer, lr="lr")')
    leaves = list(leaves_of(roots))
    chosen = _chosen_ratios(ratio, tuple(names), len(optimizer.param_groups))
    params: list[BoundParam] = []
    for text, name in names.items():
        field = _checked_field(optimizer, text)
        if field == LR and not roots:
            _refuse_unknown_schedule(optimizer)
        if not override:
            refuse_cycled(leaves, text)
            if field == LR:
                refuse_unscalable(leaves)
                _refuse_lost_default(optimizer, leaves)
        params.append(_param(optimizer, field, name, roots, override=override, chosen=chosen.get(text)))
    return params


def _chosen_ratios(given: Ratios | None, keys: Sequence[str], groups: int) -> dict[str, list[float]]:
    """By key, one ratio per group."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if len(keys) > 1:
            raise BindError(f"ratio is {given!r}, but {' and '.join(keys)} are bound: pass ratio={{{keys[0]!r}: ...}}")
        given = {keys[0]: given}
    unknown = ", ".join(sorted(given.keys() - set(keys)))
    if unknown:
        raise BindError(f"ratio names {unknown}, which is not bound: name {' or '.join(keys)}")
    return {key: _one_for_each_group(key, ratios, groups) for key, ratios in given.items()}


def _one_for_each_group(key: str, given: float | Sequence[float], groups: int) -> list[float]:
    ratios: list[Any] = list(given) if isinstance(given, list | tuple) else [given] * groups
    if len(ratios) != groups or any(why_unusable(ratio, ValueKind.REAL) is not None for ratio in ratios):
        raise BindError(
            f"the ratio of {key} is {given!r}: pass one number for all groups, or {groups} numbers, one for each group"
        )
    return [float(ratio) for ratio in ratios]


def _param(
    optimizer: Optimizer,
    field: Field,
    name: str,
    roots: Sequence[LRScheduler],
    *,
    override: bool,
    chosen: list[float] | None,
) -> BoundParam:
    kind = field.kind(optimizer.defaults)
    assert kind is not None, "checked with the field"
    peaks = peak_lrs(roots, optimizer.param_groups) if field == LR and override else None
    bases = peaks or [_base(group, field, scheduled=bool(roots)) for group in optimizer.param_groups]
    default = max(peaks) if peaks else _default(optimizer, field, bases)
    if kind is ValueKind.FLAG and set(bases) != {default}:
        raise BindError(
            f"a group differs from the default in {field}, a bool without a ratio: use the same value in all groups"
        )
    ratios = chosen or _late_ratios(optimizer, field, bases, default, roots) or _ratios(field, bases, default)
    units = [base / ratio if chosen and ratio and base else default for base, ratio in zip(bases, ratios, strict=True)]
    if chosen:
        default = next((unit for unit, ratio in zip(units, ratios, strict=True) if ratio), default)
    if override and roots:
        return OverriddenParam(optimizer, field, name, kind=kind, default=default, ratios=ratios, roots=roots)
    if field != LR or not roots:
        return BoundParam(optimizer, field, name, kind=kind, default=default, ratios=ratios)
    if default == 0:
        raise BindError("the optimizer's default lr is 0, so its schedule has no scale: construct it with another lr")
    return ScheduledParam(optimizer, field, name, default=default, ratios=ratios, roots=roots, units=units)


def _ratios(field: Field, bases: Sequence[float], default: float) -> list[float]:
    return [checked_ratio(field, base, default) for base in bases]


def _late_ratios(
    optimizer: Optimizer, field: Field, bases: Sequence[float], default: float, roots: Sequence[LRScheduler]
) -> list[float] | None:
    """The ratios of an optimizer that was loaded or has stepped before bind, if its values no longer correspond to its
    default; None if they do. Raises BindError if the ratios cannot be derived."""
    if roots and not _keeps_bases(optimizer, roots):
        return None
    moved = bool(optimizer.state) or any(getattr(root, "last_epoch", 0) > 0 for root in roots)
    others = sorted({base for base in bases if base != 0}, reverse=True)
    if not moved or default in bases or not others:
        return None
    if len(others) == 1:
        return [1.0 if base else 0.0 for base in bases]
    likely = ", ".join(f"{base / others[0]:.4g}" for base in bases)
    raise BindError(
        f"the optimizer was loaded or has stepped before bind, and no group has its default {field}={default:g} any "
        f"more, so the ratios of the groups are unknown: bind before loading a checkpoint, or pass the ratios, such "
        f"as ratio=({likely})"
    )


def _keeps_bases(optimizer: Optimizer, roots: Sequence[LRScheduler]) -> bool:
    """Whether the groups still have the lr that the schedule started from, and it is the one they were created with."""
    cyclic = any(isinstance(leaf, CyclicLR) for leaf in leaves_of(roots))
    return not cyclic and all("initial_lr" in group for group in optimizer.param_groups)


def _checked_field(optimizer: Optimizer, text: str) -> Field:
    field = Field.parse(text)
    for group in (optimizer.defaults, *optimizer.param_groups):
        try:
            held, kind = field.held(group), field.kind(group)
        except (KeyError, IndexError):
            known = ", ".join(_steerable(optimizer.param_groups[0]))
            raise BindError(f"{type(optimizer).__name__} has no {text!r} to bind: it has {known}") from None
        if kind is None:
            cure = f"bind {text}.0 or {text}.1" if isinstance(held, tuple | list) else "bind another key"
            raise BindError(f"{text} of {type(optimizer).__name__} holds {held!r}, which is not a number: {cure}")
    return field


def _steerable(group: Group) -> list[str]:
    candidates = [Field(key) for key in group if key not in ("params", "initial_lr")]
    tuples = [field.key for field in candidates if isinstance(group[field.key], tuple)]
    elements = [Field(key, index) for key in tuples for index in range(len(group[key]))]
    return [str(field) for field in (*candidates, *elements) if field.kind(group) is not None]


def _refuse_unknown_schedule(optimizer: Optimizer) -> None:
    if any("initial_lr" in group for group in optimizer.param_groups):
        raise BindError(
            "a scheduler was built on this optimizer and would undo an agreed lr: pass it, as in "
            'bind(run, optimizer, lr="lr", scheduler=scheduler)'
        )


def _refuse_lost_default(optimizer: Optimizer, leaves: Sequence[LRScheduler]) -> None:
    held = optimizer.defaults["lr"]
    shared = isinstance(held, Tensor) and any(group["lr"] is held for group in optimizer.param_groups)
    if shared and any(isinstance(leaf, CyclicLR) for leaf in leaves):
        raise BindError(
            "CyclicLR wrote its base_lr into the tensor that is also the optimizer's default lr: "
            'give each group a tensor of its own, or use mode="override"'
        )


def _base(group: Group, field: Field, *, scheduled: bool) -> float:
    """The value that the user set. With a schedule, which has already changed lr, that is `initial_lr`."""
    if not scheduled or field != LR:
        return number_in(field.held(group))
    base = group.get("initial_lr", group["lr"])
    if isinstance(base, Tensor) and base is group["lr"] and "initial_lr" in group:
        raise BindError(
            "lr and initial_lr of a group are one tensor, as SequentialLR of older torch makes them, so the lr "
            "that the schedule started from is lost: construct the optimizer with a float lr, or update torch"
        )
    return number_in(base)


def _default(optimizer: Optimizer, field: Field, bases: Sequence[float]) -> float:
    """The optimizer's default. If a group holds the same tensor: its value before the schedule changed it."""
    held = field.held(optimizer.defaults)
    if isinstance(held, Tensor):
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            if field.held(group) is held:
                return base
    return number_in(held)


class SteeredRun(Protocol):
    """The part of a `Run` that a binding uses. `bind` accepts any object with these members."""

    @property
    def config(self) -> Any:
        """The agreed values: an object with one attribute per name, or a mapping."""

    def on_change(self, fn: Callable[[Any, Any], object], /) -> object:
        """Registers `fn(old, new)`: called after each agreed change, in the training thread, between two steps."""


def watch_drift(run: SteeredRun, check: Callable[[], Mapping[str, str]]) -> Callable[[], None]:
    """Makes a `Run` call `check` from time to time. Returns a function that stops it."""
    if isinstance(run, Run):
        return run._drift.add(check)
    return lambda: None


def is_agreed(config: object, name: str) -> bool:
    """Whether `config` has a hyperparameter called `name`."""
    return agreed_in(config, name) is not _ABSENT


def agreed_in(config: object, name: str) -> object:
    """The value of `name` in `config`; a sentinel, which is not a number, if there is none."""
    if isinstance(config, Mapping):
        return config.get(name, _ABSENT)
    return getattr(config, name, _ABSENT)
