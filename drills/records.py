"""What a rank writes down for the drill to read: one `write` a line, so that a SIGKILL leaves whole lines and all."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TypeAlias

Said: TypeAlias = dict[str, Any]


class Records:
    """The writing end."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, event: str, **facts: object) -> None:
        line = json.dumps({"event": event, **facts, "at": time.monotonic()})
        os.write(self._descriptor, line.encode() + b"\n")


class Reader:
    """The reading end; what was read stays in `said`."""

    def __init__(self, path: Path) -> None:
        self.said: list[Said] = []
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
        self.said += [json.loads(line) for line in whole.splitlines()]
