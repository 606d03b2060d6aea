"""A state as it is now, that training no longer changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Take = Callable[[Tensor], Tensor]


def on_cpu(state: Any) -> Any:
    """A copy of `state` in memory of its own on the CPU; waits for the devices that hold it.

    Tensors that are one view of one storage (tied weights) stay one. Costs as much memory as the state has.
    """
    return _twin(state, _once(lambda tensor: tensor.to("cpu", copy=True)))


def apart_from_training(state: Any) -> Any:
    """`state` with copies of its tensors on the CPU; those on other devices are left to be copied there by another."""
    return _twin(state, _once(lambda tensor: tensor.clone() if tensor.device.type == "cpu" else tensor))


def _once(take: Take) -> Take:
    taken: dict[tuple[Any, ...], Tensor] = {}

    def take_once(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if type(tensor) is not Tensor or tensor.is_sparse:  # a DTensor or the like: its storage says nothing
            return take(tensor)
        place = (tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype)
        key = (*place, tuple(tensor.shape), tensor.stride())
        if key not in taken or tensor.numel() == 0:
            taken[key] = take(tensor)
        return taken[key]

    return take_once


def _twin(state: Any, take: Take) -> Any:
    if isinstance(state, Tensor):
        return take(state)
    if isinstance(state, Mapping):
        twin: Any = copy.copy(state)  # with what else it carries: a model's state dict has versions in an attribute
        for name, value in state.items():
            twin[name] = _twin(value, take)
        return twin
    if isinstance(state, tuple):
        values = [_twin(value, take) for value in state]
        return type(state)(*values) if hasattr(state, "_fields") else tuple(values)
    if isinstance(state, list):
        return [_twin(value, take) for value in state]
    return copy.deepcopy(state)
