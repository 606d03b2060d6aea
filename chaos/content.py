"""The content of the checkpoint of a step, and the duration of its save: both follow from the seed and the step."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PARTS: Final = ("first", "second", "third", "fourth")
MOST_BYTES: Final = 400_000
SHORTEST_SAVE_S: Final = 0.06
LONGEST_SAVE_S: Final = 0.7
SAVED: Final = 0.2
"""The share of steps that are saved."""
PIECE_BYTES: Final = 16 * 1024


def is_saved(seed: int, step: int) -> bool:
    return _dice(seed, "saved", step).random() < SAVED


def length_s(seed: int, step: int) -> float:
    """The minimum time that writing the files of that step takes."""
    return _dice(seed, "length", step).uniform(SHORTEST_SAVE_S, LONGEST_SAVE_S)


def content(seed: int, step: int) -> dict[str, bytes]:
    """What all ranks hold after the update of `step`, by part."""
    sizes = _dice(seed, "sizes", step)
    return {name: _dice(seed, name, step).randbytes(sizes.randrange(1, MOST_BYTES)) for name in PARTS}


def digest(parts: Mapping[str, bytes]) -> str:
    found = hashlib.sha256()
    for name in sorted(parts):
        found.update(f"{name} {len(parts[name])} ".encode() + parts[name])
    return found.hexdigest()


def write_slowly(folder: Path, parts: Mapping[str, bytes], takes_s: float) -> None:
    """Writes one file per part, piece by piece."""
    pieces = sum(1 + len(data) // PIECE_BYTES for data in parts.values())
    for name, data in parts.items():
        with (folder / name).open("xb", buffering=0) as file:
            for start in range(0, len(data) + 1, PIECE_BYTES):
                file.write(data[start : start + PIECE_BYTES])
                time.sleep(takes_s / pieces)


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in PARTS}


def _dice(seed: int, *what: object) -> random.Random:
    return random.Random(f"{seed} {what}")
