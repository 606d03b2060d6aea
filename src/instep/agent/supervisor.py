"""The agent's parent: starts another agent when one is killed or fails, also while no worker passes a boundary.

Workers start a new agent too, at their next boundary. But ranks that wait in a collective for one that died pass none,
and the one they wait for cannot be replaced while nobody speaks for them. Whoever has the folder's lock is the agent,
so it does not matter who comes first.
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
"""After so many deaths in a row the workers' own boundaries must do."""
SETTLED_S: Final = 60.0
"""An agent that has lived for so long starts the count anew."""


def supervise(folder: RuntimeFolder, lock: int, serve: Callable[[], int]) -> int:
    """Runs `serve` in a child that alone holds `lock`, and again whenever a signal kills it or its exit code is not 0.
    Returns in each child with that code, and in the parent when a child has ended well, when too many have not, or when
    somebody else has started an agent.

    Limit: what kills this process too (the end of a container) is not survived. It must not have started threads.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a trainer that ignores it hands that on: there is no waiting then
    restarts, held = 0, lock
    while True:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os.set_inheritable(held, False)
            return serve()
        os.close(held)  # the lock is the agent's: were it ours too, nobody could replace us both
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return 0
        if code < 0:  # else it has left the reason itself
            note_end(folder, f"agent {child} was killed by {signal_name(-code)}")
        restarts = 1 if time.monotonic() - began > SETTLED_S else restarts + 1
        if restarts > MAX_RESTARTS:
            return 1
        time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (restarts - 1)))  # dying at once must not take a core
        try:
            again = folder.claim()
        except (InstepError, OSError):
            again = None
        if again is None:
            return 0
        held = again
