"""A process that has imported torch once, and makes ranks of it by forks: each would take seconds of two processors.

The ranks are processes of their own in all but that: their environment, script, streams and exit code are theirs alone.
Not for tests of what a process does before it has imported torch.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import queue
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Never

LONGEST = 1 << 20
START_TIMEOUT_S = 60.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""A process with threads cannot be forked safely."""


class Born:
    """A rank, with those parts of `subprocess.Popen` that the tests use; its three streams are pipes of text."""

    def __init__(self, pid: int, streams: Sequence[IO[str]]) -> None:
        self.pid = pid
        self.stdin, self.stdout, self.stderr = streams
        self.returncode: int | None = None
        self._ended = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(["rank"], timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ended(self, code: int) -> None:
        """The nursery has seen its end."""
        self.returncode = code
        self._ended.set()


class Nursery:
    """The process, started with the first rank. From any thread; `close` when all ranks have ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket
        self._reader: threading.Thread
        self._pids: queue.Queue[int] = queue.Queue()
        self._born: dict[int, Born] = {}
        self._codes: dict[int, int] = {}

    def bear(self, script: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> Born:
        """A rank that runs the script."""
        theirs, ours = zip(os.pipe(), os.pipe()[::-1], os.pipe()[::-1], strict=True)
        order = {"script": str(script), "arguments": list(arguments), "environment": dict(environment)}
        with self._lock:
            self._start()
            socket.send_fds(self._channel, [json.dumps(order).encode()], theirs)
            for descriptor in theirs:
                os.close(descriptor)
            pid = self._pids.get(timeout=START_TIMEOUT_S)
            streams = [os.fdopen(descriptor, mode) for descriptor, mode in zip(ours, "wrr", strict=True)]
            born = self._born[pid] = Born(pid, streams)
            if pid in self._codes:
                born.ended(self._codes.pop(pid))
        return born

    def close(self) -> None:
        if self._process is None:
            return
        self._channel.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._channel.close()
        self._process.wait(START_TIMEOUT_S)

    def _start(self) -> None:
        if self._process is not None:
            return
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen([sys.executable, __file__], stdin=other, env={**os.environ, **ONE_THREAD})
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while text := self._channel.recv(LONGEST):
            said = json.loads(text)
            if "code" not in said:
                self._pids.put(said["pid"])
            elif (born := self._born.pop(said["pid"], None)) is not None:
                born.ended(said["code"])
            else:
                self._codes[said["pid"]] = said["code"]


def main() -> int:
    """The process: bears what it is told to, and says how each has ended, until the other end of its input closes."""
    importlib.import_module("torch._dynamo")  # all of torch, and what its optimizers import when the first one is made
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked safely"
    channel = socket.socket(fileno=os.dup(0))
    with selectors.DefaultSelector() as selector, channel:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not channel:
                    bury(channel, selector, key)
                    continue
                order, descriptors, _, _ = socket.recv_fds(channel, LONGEST, 3)
                if not order:
                    return 0
                bear(channel, selector, json.loads(order), descriptors)


def bear(
    channel: socket.socket, selector: selectors.BaseSelector, order: dict[str, Any], descriptors: Sequence[int]
) -> None:
    if (pid := os.fork()) == 0:
        selector.close()
        channel.close()
        become(order, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
    channel.send(json.dumps({"pid": pid}).encode())


def bury(channel: socket.socket, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    selector.unregister(key.fileobj)
    os.close(key.fd)
    _, status = os.waitpid(key.data, 0)
    channel.send(json.dumps({"pid": key.data, "code": os.waitstatus_to_exitcode(status)}).encode())


def become(order: dict[str, Any], descriptors: Sequence[int]) -> Never:
    """In the child, which ends without taking the interpreter down: with torch in it that takes long."""
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = [order["script"], *order["arguments"]]
    sys.path[0] = str(Path(order["script"]).parent)
    code = 1
    try:
        runpy.run_path(order["script"], run_name="__main__")
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # noqa: BLE001  # as the interpreter does it
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
