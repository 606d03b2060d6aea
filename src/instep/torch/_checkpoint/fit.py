"""Checks whether a saved state can be loaded into a part of this script. Changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .parts import Part


def mismatch(part: Part, state: Any) -> str | None:
    """Why `part` cannot load or use `state`; None if no problem was found.

    Limit: does not check parts that override `load_state_dict`.
    """
    if isinstance(part, nn.Module):
        return _mismatch_of_module(part, state)
    if isinstance(part, Optimizer) and type(part).load_state_dict is Optimizer.load_state_dict:
        return _mismatch_of_optimizer(part, state)
    return None


def _mismatch_of_module(module: nn.Module, state: Any) -> str | None:
    if any(_loads_by_itself(inner) for inner in module.modules()):
        return None
    if not isinstance(state, Mapping):
        return f"it is a {type(state).__name__}"
    wanted = module.state_dict()
    missing, extra = wanted.keys() - state.keys(), state.keys() - wanted.keys()
    if missing:
        return f"it has no {_few(missing)}"
    if extra:
        return f"it has {_few(extra)}, which this script's does not have"
    for name, value in wanted.items():
        there = state[name]
        if isinstance(value, Tensor) and isinstance(there, Tensor) and value.shape != there.shape:
            return f"{name} has the shape {tuple(there.shape)} there and {tuple(value.shape)} in this script"
    return None


def _loads_by_itself(module: nn.Module) -> bool:
    """Whether its own loading code may rename, add or resize values."""
    kind = type(module)
    return (
        kind.load_state_dict is not nn.Module.load_state_dict
        or bool(module._load_state_dict_pre_hooks)
        or (
            kind._load_from_state_dict is not nn.Module._load_from_state_dict
            and not kind.__module__.startswith("torch.nn.")
        )
    )


def _mismatch_of_optimizer(optimizer: Optimizer, state: Any) -> str | None:
    """Runs torch's own check of the groups on a copy without tensors, and checks that all options that `step` reads are
    present afterwards."""
    try:
        groups = state["param_groups"]
        trial = copy.copy(optimizer)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        return f"it is not the state of an optimizer: {error!r}" if isinstance(error, KeyError) else None
    try:
        trial.load_state_dict({"state": {}, "param_groups": groups})
    except (ValueError, KeyError, TypeError) as error:
        return str(error)
    for mine, loaded in zip(optimizer.param_groups, trial.param_groups, strict=True):
        missing = mine.keys() - loaded.keys()
        if missing:
            return f"it is of another optimizer: it has no {_few(missing)}"
    return None


def _few(names: Iterable[object]) -> str:
    ordered = sorted(map(str, names))
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
