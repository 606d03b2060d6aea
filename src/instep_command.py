"""The console entry point `instep`. Ctrl-C ends it without a traceback, also while modules are loading.

It is outside the package, because importing anything from the package loads most of it first.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130


def main() -> None:
    """Runs the command line and exits with the documented exit code."""
    # Otherwise SIGINT is ignored, as under nohup.
    handles_interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if handles_interrupt:
        signal.signal(signal.SIGINT, _leave)
    from instep.cli import main as command

    try:
        if handles_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        if handles_interrupt:
            signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: object) -> None:
    """Exits at once: no work has started yet, or all is done."""
    os._exit(INTERRUPTED)
