"""Starts agents of torchrun from a process that has imported torch already: each saves the seconds that takes.

One JSON a line on standard input: {"start": [ARGUMENT...], "environ": {}, "log": PATH} is answered with the agent's
pid, {"ended": PID} with its exit code (negative: a signal's number) or null. The agents end with this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

from torch.distributed import run

PR_SET_PDEATHSIG = 1


def begin(order: dict[str, Any]) -> list[str]:
    """In the new process: what `python -m torch.distributed.run` finds when it begins."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()
    os.environ.update(order["environ"])
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((nothing, log, log)):
        os.dup2(source, target)
    sys.argv = ["torchrun", *order["start"]]
    arguments: list[str] = order["start"]
    return arguments


def serve() -> list[str] | None:
    """The arguments in a new agent; None in the nursery when nobody asks any more."""
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            answer: int | None = os.fork()
            if answer == 0:
                return begin(order)
        else:
            pid, status = os.waitpid(order["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)
    return None


if __name__ == "__main__":
    arguments = serve()
    if arguments is not None:
        run.main(arguments)
