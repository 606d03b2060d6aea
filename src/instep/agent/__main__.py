"""`python -m instep.agent FOLDER RUN LOCK NODE`: started by a worker, settings as JSON on standard input."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

from instep.agent.handover import notify_starter
from instep.agent.name import node_name
from instep.agent.supervisor import supervise
from instep.runtime import RuntimeFolder


def main() -> int:
    path, run, lock, known = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    settings = sys.stdin.read()
    if os.fork():  # before heavy imports: the launcher ends, and the agent is nobody's child
        return 0
    try:
        return _guarded(path, run, lock, known, settings)
    except Exception as error:
        notify_starter(error)
        raise


def _guarded(path: str, run: str, lock: int, known: str, settings: str) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the agent outlives the workers: see agent.service
    os.chdir("/")  # the trainer's folder may be removed or unmounted
    folder = RuntimeFolder(Path(path))
    name = node_name(folder, known)  # here: every restarted agent has the same name, even if the folder was removed

    # Loaded once, by the supervisor: an agent that replaces a killed one is a fork of it and starts without a delay.
    from instep.agent.service import serve

    gc.freeze()  # the agents share this memory with the supervisor
    return supervise(folder, lock, lambda: serve(path, run, settings, name))


if __name__ == "__main__":
    sys.exit(main())
