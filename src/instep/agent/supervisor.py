"""The agent's parent: starts another agent when one is killed or fails, even while no worker passes a boundary.

Workers start a new agent too, at their next boundary. But ranks that wait in a collective for a dead rank pass none,
and without an agent the dead rank cannot be replaced. The process that holds the folder's lock is the agent,
whichever started it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Final

from instep.agent.ending import signal_name
from instep.agent.handover import note_end
from instep.errors import InstepError
from instep.runtime import RuntimeFolder

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0
MAX_RESTARTS: Final = 20
"""After so many failures in a row, only the workers start another agent."""
SETTLED_S: Final = 60.0
"""An agent that has lived this long resets the count."""


def supervise(folder: RuntimeFolder, lock: int, serve: Callable[[], int]) -> int:
    """Runs `serve` in a child that alone holds `lock`, and again whenever a signal kills it or its exit code is not
    0. Returns that code in each child. Returns in the parent when a child has ended well, when too many have failed,
    or when another process has started an agent.

    Limit: it does not survive what kills this process too (the end of a container). This process must not have
    started threads.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a trainer's SIG_IGN is inherited, and would prevent waiting
    restarts, held = 0, lock
    while True:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.set_inheritable(held, False)
            return serve()
        os.close(held)  # only the agent holds the lock: otherwise no process could replace both
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return 0
        if code < 0:  # otherwise the agent has recorded the reason
            note_end(folder, f"agent {child} was killed by {signal_name(-code)}")
        restarts = 1 if time.monotonic() - began > SETTLED_S else restarts + 1
        if restarts > MAX_RESTARTS:
            return 1
        # An agent that dies at once must not use a core. This process has nothing else to do meanwhile.
        time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (restarts - 1)))
        try:
            again = folder.claim()
        except (InstepError, OSError):
            again = None
        if again is None:
            return 0
        held = again
