"""`python -m instep.agent FOLDER RUN LOCK NODE`: started by a worker, settings as JSON on standard input."""

from __future__ import annotations

import os
import sys


def main() -> int:
    folder, run, lock, node = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    settings = sys.stdin.read()
    if os.fork():  # before anything heavy: the launcher ends, and the agent is nobody's child
        return 0
    os.set_inheritable(lock, False)
    from instep.agent.service import serve

    return serve(folder, run, settings, node)


if __name__ == "__main__":
    sys.exit(main())
