"""The texts that the benchmark trains on. Every machine with Python has them; nothing is downloaded."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

import torch
from torch import Tensor

SYMBOLS = 124
"""Newline and printable ASCII have a symbol of their own; the other bytes share the rest."""
CONTEXT = 32
HELD_OUT = 0.05
"""The share of a text, at its end, that only evaluation uses."""
_ASCII = 96
_LIBRARY_BYTES = 1_500_000

Text = Literal["prose", "code", "tables", "short"]


def _prose() -> bytes:
    return "\n".join(topics[name] for name in sorted(topics)).encode()


def _library(pattern: str) -> bytes:
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts, size = [], 0
    for path in sorted(folder.glob(pattern)):
        parts.append(path.read_bytes())
        size += len(parts[-1])
        if size > _LIBRARY_BYTES:
            break
    return b"".join(parts)


_SOURCES: dict[str, Callable[[], bytes]] = {
    "prose": _prose,  # what most runs train on
    "code": lambda: _library("*.py"),
    "tables": lambda: _library("encodings/cp*.py"),  # tables of numbers, easy to learn
    "short": lambda: _prose()[:4000],  # so little that a run learns it by heart
}


@cache
def symbols(text: Text) -> Tensor:
    """The text as numbers from 0 to SYMBOLS - 1."""
    number_of = torch.tensor(
        [
            0 if byte == 10 else byte - 31 if 32 <= byte <= 126 else _ASCII + byte % (SYMBOLS - _ASCII)
            for byte in range(256)
        ]
    )
    return number_of[torch.frombuffer(bytearray(_SOURCES[text]()), dtype=torch.uint8).long()]


@dataclass(slots=True)
class Batch:
    """One batch of one rank: `inputs` and `targets` of shape (size, CONTEXT)."""

    inputs: Tensor
    targets: Tensor
    scale: float = 1.0
    """What the rank's gradient is multiplied by, as by a faulty kernel. NaN makes the loss NaN, too."""


def draw(text: Text, size: int, dice: torch.Generator) -> Batch:
    """Random pieces of the text."""
    numbers = symbols(text)
    end = int(len(numbers) * (1 - HELD_OUT)) - CONTEXT - 1
    starts = torch.randint(end, (size, 1), generator=dice)
    pieces = numbers[starts + torch.arange(CONTEXT + 1)]
    return Batch(pieces[:, :-1], pieces[:, 1:])


@cache
def held_out(text: Text, pieces: int = 256) -> tuple[Tensor, Tensor]:
    """The pieces that evaluation uses, evenly spaced in the part that no batch is drawn from."""
    numbers = symbols(text)
    starts = torch.linspace(len(numbers) * (1 - HELD_OUT), len(numbers) - CONTEXT - 2, pieces).long().unsqueeze(1)
    found = numbers[starts + torch.arange(CONTEXT + 1)]
    return found[:, :-1], found[:, 1:]
