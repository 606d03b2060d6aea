"""What torchrun runs in the rendezvous benchmark: a worker that reports its start and ends when a peer has ended.

Argument: the path of a socket. The other side closes it when another worker of the same world has ended, as a
collective would fail. It imports nothing large, because only the rendezvous is measured.
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
