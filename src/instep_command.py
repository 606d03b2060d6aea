"""The console entry point `instep`: Ctrl-C ends it without a traceback, also while the modules are being loaded.

Beside the package, because importing anything of the package loads most of it first.
"""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130


def main() -> None:
    """Ends the process with the documented exit code."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, as under nohup
    if heard:
        signal.signal(signal.SIGINT, _leave)
    from instep.cli import main as command

    try:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        command()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        if heard:
            signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: object) -> None:
    """Nothing has begun yet, or all is done."""
    os._exit(INTERRUPTED)
