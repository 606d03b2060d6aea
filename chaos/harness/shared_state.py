"""The shared state of the ranks: one row of words each, in memory that outlives them. It replaces the collective.

A rank finishes a step when all have reached it, as in an all-reduce: no rank runs ahead of a dead one.
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum
from pathlib import Path

WORDS = 16
NO_STEP = 2**62


class Field(IntEnum):
    """The words of a rank's row; signed 64-bit integers, each written by one process only."""

    PID = 0
    LIFE = 1
    """The number of the process of this rank that writes, counted from 1."""
    PASSED = 2
    """The last step whose boundary was passed."""
    ARRIVED = 3
    """The last step that was done."""
    VIEW = 4
    LONGEST_BOUNDARY_US = 5
    HOLD_US = 6
    """How long a rank that gets SIGUSR2 blocks the interpreter; written by the sender of the signal."""


class SharedState:
    """A file of shared words. The header row has the step after which all ranks end."""

    def __init__(self, path: Path, world_size: int, *, create: bool = False) -> None:
        self.world_size = world_size
        size = (world_size + 1) * WORDS * 8
        if create:
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), size)
        if create:
            self.end_after(NO_STEP)
            self.begin_at(0)

    def __repr__(self) -> str:
        return f"SharedState(arrived={[self.get(rank, Field.ARRIVED) for rank in range(self.world_size)]})"

    def get(self, rank: int, field: Field) -> int:
        return int(struct.unpack_from("q", self._memory, ((rank + 1) * WORDS + field) * 8)[0])

    def set(self, rank: int, field: Field, value: int) -> None:
        struct.pack_into("q", self._memory, ((rank + 1) * WORDS + field) * 8, value)

    def lowest_arrived(self) -> int:
        return min(self.get(rank, Field.ARRIVED) for rank in range(self.world_size))

    def is_waited(self) -> bool:
        """Whether a rank has done a step that another one has not, and therefore waits as in a collective."""
        return self.lowest_arrived() < max(self.get(rank, Field.ARRIVED) for rank in range(self.world_size))

    def highest_passed(self) -> int:
        return max(self.get(rank, Field.PASSED) for rank in range(self.world_size))

    def begin_at(self, step: int) -> None:
        """Makes all ranks restart at `step`. Call it while none of them runs."""
        for rank in range(self.world_size):
            self.set(rank, Field.PASSED, step - 1)
            self.set(rank, Field.ARRIVED, step - 1)

    @property
    def last_step(self) -> int:
        return int(struct.unpack_from("q", self._memory, 0)[0])

    def end_after(self, step: int) -> None:
        struct.pack_into("q", self._memory, 0, step)

    def close(self) -> None:
        self._memory.close()
