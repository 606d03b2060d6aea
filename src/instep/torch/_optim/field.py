"""One key of an optimizer's parameter groups, and how to read and write the number under it."""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from dataclasses import dataclass
from typing import Any

import torch

from .ratio import Kind, Number, kind_of

Group = MutableMapping[str, Any]


def number_in(held: object) -> float:
    """The number in a float, an int or a tensor of one element (which waits for the tensor's device)."""
    return float(held.item()) if isinstance(held, torch.Tensor) else float(held)  # type: ignore[arg-type]


def rounded_like(held: object, value: float) -> float:
    """`value` as `held` would give it back after holding it: rounded, when it is a tensor of few bits."""
    if isinstance(held, torch.Tensor):
        return float(torch.tensor(value, dtype=held.dtype).item())
    return value


def fresh_like(held: object, value: float) -> float | torch.Tensor:
    """`value` in the form of `held`, never `held` itself: an earlier state dict may still refer to that."""
    if isinstance(held, torch.Tensor):
        return torch.full_like(held, value, requires_grad=False)
    return value


@dataclass(frozen=True, slots=True)
class Field:
    """A key of every parameter group, or (`betas.0`) one element of the tuple under a key."""

    key: str
    index: int | None = None

    @classmethod
    def parse(cls, text: str) -> Field:
        """Read `lr` or `betas.0`."""
        key, dot, last = text.rpartition(".")
        return cls(key, int(last)) if dot and last.isdecimal() else cls(text)

    def __str__(self) -> str:
        return self.key if self.index is None else f"{self.key}.{self.index}"

    def held(self, group: Group) -> object:
        """What the group holds, as it holds it. KeyError or IndexError when there is no such place."""
        whole = group[self.key]
        if self.index is None:
            return whole
        if not isinstance(whole, tuple | list):
            raise KeyError(self.key)
        return whole[self.index]

    def kind(self, group: Group) -> Kind | None:
        """The kind of number the group holds; None when it holds none."""
        held = self.held(group)
        if isinstance(held, torch.Tensor):
            return Kind.REAL if held.numel() == 1 and held.is_floating_point() else None
        return kind_of(held)

    def tensor(self, group: Group) -> torch.Tensor | None:
        """The tensor the group holds, if it is one."""
        held = self.held(group)
        return held if isinstance(held, torch.Tensor) else None

    def mark(self, group: Group) -> object:
        """A value that changes with each write here, compared by `==`. Never waits for a device: of a tensor on one it
        is the tensor and its version, which each write in place raises."""
        held = self.held(group)
        if isinstance(held, torch.Tensor) and not held.is_cpu:
            return id(held), held._version
        return number_in(held)

    def write(self, group: Group, value: Number) -> None:
        """Make the group hold `value`: a tensor is filled in place, anything else replaced."""
        held = self.held(group)
        if isinstance(held, torch.Tensor):
            with torch.no_grad():
                held.fill_(value)
        else:
            self.put(group, value)

    def put(self, group: Group, held: object) -> None:
        """Replace what the group holds, whatever it was."""
        if self.index is None:
            group[self.key] = held
            return
        whole: MutableSequence[Any] = list(group[self.key])
        whole[self.index] = held
        group[self.key] = type(group[self.key])(whole)
