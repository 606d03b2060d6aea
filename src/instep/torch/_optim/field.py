"""One key of an optimizer's parameter groups: reads and writes the number under it."""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from dataclasses import dataclass
from typing import Any

import torch

from .ratio import Number, ValueKind, kind_of

Group = MutableMapping[str, Any]


def number_in(held: object) -> float:
    """The number in a float, an int or a tensor of one element (which waits for the tensor's device)."""
    return float(held.item()) if isinstance(held, torch.Tensor) else float(held)  # type: ignore[arg-type]


def rounded_like(held: object, value: float) -> float:
    """`value` rounded to the precision of `held` if that is a tensor."""
    if isinstance(held, torch.Tensor):
        return float(torch.tensor(value, dtype=held.dtype).item())
    return value


def fresh_like(held: object, value: float) -> float | torch.Tensor:
    """A new object with `value` in the form of `held`. Never `held` itself: an earlier state dict may share it."""
    if isinstance(held, torch.Tensor):
        return torch.full_like(held, value, requires_grad=False)
    return value


@dataclass(frozen=True, slots=True)
class Field:
    """A key of every parameter group, or one element of the tuple under a key (`betas.0`)."""

    key: str
    index: int | None = None

    @classmethod
    def parse(cls, text: str) -> Field:
        """Parses `lr` or `betas.0`."""
        key, dot, last = text.rpartition(".")
        return cls(key, int(last)) if dot and last.isdecimal() else cls(text)

    def __str__(self) -> str:
        return self.key if self.index is None else f"{self.key}.{self.index}"

    def held(self, group: Group) -> object:
        """The object in the group. Raises KeyError or IndexError if there is none."""
        whole = group[self.key]
        if self.index is None:
            return whole
        if not isinstance(whole, tuple | list):
            raise KeyError(self.key)
        return whole[self.index]

    def kind(self, group: Group) -> ValueKind | None:
        """The kind of number in the group; None if it is not a number."""
        held = self.held(group)
        if isinstance(held, torch.Tensor):
            return ValueKind.REAL if held.numel() == 1 and held.is_floating_point() else None
        return kind_of(held)

    def tensor(self, group: Group) -> torch.Tensor | None:
        """The tensor in the group; None if it is not a tensor."""
        held = self.held(group)
        return held if isinstance(held, torch.Tensor) else None

    def mark(self, group: Group) -> object:
        """A value that changes with each write, compared by `==`. Never waits for a device: for a tensor on a device it
        is the tensor's id and version, which each in-place write increments."""
        held = self.held(group)
        if isinstance(held, torch.Tensor) and not held.is_cpu:
            return id(held), held._version
        return number_in(held)

    def write(self, group: Group, value: Number) -> None:
        """Sets the value in the group: fills a tensor in place, replaces anything else."""
        held = self.held(group)
        if isinstance(held, torch.Tensor):
            with torch.no_grad():
                held.fill_(value)
        else:
            self.put(group, value)

    def put(self, group: Group, held: object) -> None:
        """Replaces the object in the group."""
        if self.index is None:
            group[self.key] = held
            return
        whole: MutableSequence[Any] = list(group[self.key])
        whole[self.index] = held
        group[self.key] = type(group[self.key])(whole)
