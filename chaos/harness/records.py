"""The records of a rank: with one `write` per line, all lines are complete after a SIGKILL."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]


class RecordWriter:
    """Each line includes the given `place`."""

    def __init__(self, path: Path, **place: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._place = place

    def write(self, event: str, **facts: object) -> None:
        line = json.dumps({**self._place, "event": event, **facts, "at": time.monotonic()})
        os.write(self._descriptor, line.encode() + b"\n")


class RecordReader:
    """`records` keeps what has been read."""

    def __init__(self, path: Path) -> None:
        self.records: list[Record] = []
        self._path = path
        self._offset = 0

    def refresh(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        self.records += [json.loads(line) for line in whole.splitlines()]

    def select(self, event: str, **facts: object) -> list[Record]:
        """All records of that event with those facts, the newest ones included."""
        self.refresh()
        return [
            record
            for record in self.records
            if record["event"] == event and all(record.get(name) == fact for name, fact in facts.items())
        ]
