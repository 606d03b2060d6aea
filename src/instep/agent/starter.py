"""Messages to the worker that started this agent: standard output is a pipe to it."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from instep.errors import InstepError
from instep.system_errors import explained
from instep.wire import CANNOT_SERVE

MAX_TEXT: Final = 1000
_OUTPUT: Final = 1


def tell_starter(error: BaseException) -> None:
    """Writes one line that says why this agent cannot serve, because the folder may have no space for a log."""
    if isinstance(error, OSError):
        text = explained(error, "set INSTEP_RUNTIME_DIR to another folder")
    else:
        text = str(error) if isinstance(error, InstepError) else f"{type(error).__name__}: {error}"
    line = " ".join(f"{CANNOT_SERVE}{text}".split())[:MAX_TEXT]
    with contextlib.suppress(OSError):  # that worker has gone, or has found another agent
        os.write(_OUTPUT, f"{line}\n".encode())


def release_starter() -> None:
    """Closes the pipe: this agent serves, and the worker connects to its socket."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _OUTPUT)
        os.close(nowhere)
