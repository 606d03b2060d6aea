"""What an agent leaves in the runtime folder for the next one, and its report to the worker that started it."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Final

from instep.errors import InstepError
from instep.runtime import RuntimeFolder
from instep.system_errors import explained
from instep.wire import CANNOT_SERVE

log = logging.getLogger("instep")


MAX_TEXT = 500
MAX_LINE: Final = 1000
_OUTPUT: Final = 1


class LeaseFile:
    """Promise: `read` returns the lease that was last passed to `write` in this folder since this machine booted; 0 for
    none. It returns 0 in a copy of the folder, because the lease may be in use where it was copied. If the file cannot
    be read or written, that is logged, and the former lease ends after its TTL."""

    def __init__(self, folder: RuntimeFolder) -> None:
        self._folder = folder
        self._path = folder.lease

    def __repr__(self) -> str:
        return f"LeaseFile({self._path})"

    def read(self) -> int:
        try:
            lease, _, place = self._path.read_text().partition(" ")
            return int(lease, 16) if place and place == self._folder.place() else 0
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            log.warning("the id of the former agent's lease cannot be read: that lease ends after its TTL (%s)", error)
            return 0

    def write(self, lease_id: int) -> None:
        part = self._path.with_suffix(".part")
        try:
            part.write_text(f"{lease_id:x} {self._folder.place()}")
            part.replace(self._path)
        except OSError as error:
            log.warning("%s cannot be written: this agent's lease outlives it if it is killed (%s)", self._path, error)


def note_end(folder: RuntimeFolder, reason: str) -> None:
    """Replaces the reason why the agent ended. A failed write is ignored: nothing depends on it."""
    with contextlib.suppress(OSError):
        folder.end.write_text(reason[:MAX_TEXT], encoding="utf-8", errors="replace")


def note_start(folder: RuntimeFolder, pid: int) -> str | None:
    """How the former agent ended, None if there was none. Writes the reason that applies if this one is killed."""
    former: str | None = None
    with contextlib.suppress(OSError):
        former = " ".join(folder.end.read_text(encoding="utf-8", errors="replace").split()) or None
    note_end(folder, f"agent {pid} was killed together with its supervisor, or its machine stopped")
    return former


def notify_starter(error: BaseException) -> None:
    """Writes one line that says why this agent cannot serve: the folder may have no space for a log."""
    if isinstance(error, OSError):
        text = explained(error, "set INSTEP_RUNTIME_DIR to another folder")
    else:
        text = str(error) if isinstance(error, InstepError) else f"{type(error).__name__}: {error}"
    line = " ".join(f"{CANNOT_SERVE}{text}".split())[:MAX_LINE]
    with contextlib.suppress(OSError):  # that worker has ended or has found another agent
        os.write(_OUTPUT, f"{line}\n".encode())


def release_starter() -> None:
    """Closes the pipe: this agent serves, and the worker connects to its socket."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _OUTPUT)
        os.close(nowhere)
