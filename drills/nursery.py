"""A process that has imported a trainer once and makes each rank by a fork: torch alone takes seconds to import.

`python -m drills.nursery MODULE` reads a line of JSON a rank on its standard input, and says on its standard output
which process that rank is, and how it ended. Its ranks end with it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, Never

LOOK_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: Sequence[str]) -> int:
    trainer: Callable[[Sequence[str]], int] = importlib.import_module(arguments[0]).main
    say({"ready": True})
    rest = b""
    while True:
        if select.select([0], [], [], LOOK_S)[0]:
            text = os.read(0, 65536)
            if not text:
                return 0
            *lines, rest = (rest + text).split(b"\n")
            for line in lines:
                order = json.loads(line)
                if (child := os.fork()) == 0:
                    become(order, trainer)
                say({"name": order["name"], "pid": child})
        reap()


def become(order: dict[str, Any], trainer: Callable[[Sequence[str]], int]) -> Never:
    """In the child, a rank from now on, with its own environment and a file for what it prints. It ends without taking
    the interpreter down: with torch in it that takes seconds, and the copies of pages that this makes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.update(order["environment"])
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.close(log)
    os.close(nothing)
    code = 1
    try:
        code = trainer(order["arguments"])
    except Exception:  # noqa: BLE001  # as the interpreter does it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        say({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def say(document: dict[str, Any]) -> None:
    os.write(1, json.dumps(document).encode() + b"\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
