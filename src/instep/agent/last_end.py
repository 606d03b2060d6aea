"""Why this node's agent ended last, kept beside its socket for the log of the next one."""

from __future__ import annotations

import contextlib

from instep.runtime import RuntimeFolder

MAX_TEXT = 500


def note_end(folder: RuntimeFolder, reason: str) -> None:
    """Replaces the reason. A failed write is ignored: nothing depends on it."""
    with contextlib.suppress(OSError):
        folder.end.write_text(reason[:MAX_TEXT], encoding="utf-8", errors="replace")


def note_start(folder: RuntimeFolder, pid: int) -> str | None:
    """How the former agent ended, None if there was none. Writes the reason for the case that this one is killed."""
    former: str | None = None
    with contextlib.suppress(OSError):
        former = " ".join(folder.end.read_text(encoding="utf-8", errors="replace").split()) or None
    note_end(folder, f"agent {pid} was killed together with its supervisor, or its machine stopped")
    return former
