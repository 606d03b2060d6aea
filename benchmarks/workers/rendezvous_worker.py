"""What torchrun runs in the rendezvous benchmark: a worker that says it is there and ends when a peer of it has ended.

Argument: the path of a socket. The far side closes it when another worker of the same world has gone, which is how a
collective ends then. It imports nothing heavy: what is measured is the rendezvous.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from time import monotonic


def main() -> None:
    started = monotonic()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(sys.argv[1])
        environ = os.environ
        world = f"{environ['MASTER_PORT']}/{environ['WORLD_SIZE']}"
        report = [environ["INSTEP_TAG"], int(environ["GROUP_RANK"]), int(environ["WORLD_SIZE"]), world, started]
        line.sendall(json.dumps(report).encode() + b"\n")
        line.recv(1)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
