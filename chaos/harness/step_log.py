"""When a rank began each step: one small record per step, in a file that outlives the rank."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_RECORD = struct.Struct("=iqd")


class StepStart(NamedTuple):
    """Process `life` of a rank had passed the boundary before `step`, and read the clock then (monotonic seconds)."""

    life: int
    step: int
    at: float


class StepLog:
    """Where one process of a rank writes. With one `write` per record, all records are complete after a SIGKILL."""

    def __init__(self, path: Path, life: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._life = life

    def write(self, step: int) -> None:
        os.write(self._descriptor, _RECORD.pack(self._life, step, time.monotonic()))


def read_step_log(path: Path) -> Iterator[StepStart]:
    """The records of all processes of one rank, in order."""
    if path.exists():
        for fields in _RECORD.iter_unpack(path.read_bytes()):
            yield StepStart(*fields)
