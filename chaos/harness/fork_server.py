"""A process that has imported torch once and forks each rank, because the import takes seconds of CPU time.

The ranks are separate processes in every other respect: environment, arguments, streams, session and exit code. They
end with the server. Limit: it does not show what a process does before it has imported torch.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
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
ALL_OF_TORCH = "torch._dynamo"
"""Imports torch, and what its optimizers import when the first one is made."""
_PR_SET_PDEATHSIG = 1


class ForkedProcess:
    """The parts of `subprocess.Popen` that are needed. The streams are text pipes, or None with a log."""

    def __init__(self, pid: int, streams: Sequence[IO[str]]) -> None:
        self.pid = pid
        self.stdin: IO[str] | None
        self.stdout: IO[str] | None
        self.stderr: IO[str] | None
        self.stdin, self.stdout, self.stderr = streams or (None, None, None)
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
            with contextlib.suppress(ProcessLookupError):  # its end has not been reported yet
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def ended(self, code: int) -> None:
        """The server has seen its end."""
        self.returncode = code
        self._ended.set()


class ForkServer:
    """Imports `modules`, or all of torch, when the first process is started. From any thread; `close` ends all
    processes."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules or (ALL_OF_TORCH,)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket
        self._reader: threading.Thread
        self._pids: queue.Queue[int] = queue.Queue()
        self._forked: dict[int, ForkedProcess] = {}
        self._codes: dict[int, int] = {}

    def start(
        self,
        target: str | Path,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        log: Path | None = None,
        new_session: bool = False,
    ) -> ForkedProcess:
        """Runs a script, or `module:function` with the arguments. It writes to `log`, if that is given."""
        theirs, ours = _pipes() if log is None else _files(log)
        order = {
            "target": str(target),
            "arguments": list(arguments),
            "environment": dict(environment),
            "new_session": new_session,
        }
        with self._lock:
            self._start()
            socket.send_fds(self._channel, [json.dumps(order).encode()], theirs)
            for descriptor in set(theirs):
                os.close(descriptor)
            pid = self._pids.get(timeout=START_TIMEOUT_S)
            streams = [os.fdopen(descriptor, mode) for descriptor, mode in zip(ours, "wrr", strict=False)]
            forked = self._forked[pid] = ForkedProcess(pid, streams)
            if pid in self._codes:
                forked.ended(self._codes.pop(pid))
        return forked

    def close(self) -> None:
        if self._process is None:
            return
        self._channel.shutdown(socket.SHUT_RDWR)
        self._reader.join()
        self._channel.close()
        self._process.wait(START_TIMEOUT_S)
        for forked in list(self._forked.values()):
            forked.ended(-signal.SIGKILL)
        self._process = None

    def _start(self) -> None:
        if self._process is not None:
            return
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            command = [sys.executable, "-P", __file__, *self._modules]
            path = os.pathsep.join(filter(None, sys.path))
            environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": path}
            self._process = subprocess.Popen(command, stdin=other.fileno(), env=environment)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while text := self._channel.recv(LONGEST):
            said = json.loads(text)
            if "code" not in said:
                self._pids.put(said["pid"])
            elif (forked := self._forked.pop(said["pid"], None)) is not None:
                forked.ended(said["code"])
            else:
                self._codes[said["pid"]] = said["code"]


def _pipes() -> tuple[list[int], list[int]]:
    """The ends of the process and ours, of each standard stream."""
    theirs, ours = zip(os.pipe(), os.pipe()[::-1], os.pipe()[::-1], strict=True)
    return list(theirs), list(ours)


def _files(log: Path) -> tuple[list[int], list[int]]:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return [nothing, output, output], []


# -- the server ------------------------------------------------------------------------------------------------------


def serve(modules: Sequence[str]) -> int:
    """Forks the requested processes and reports how each one ended, until the other end of its input closes."""
    for module in modules:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked safely"
    channel = socket.socket(fileno=os.dup(0))
    with selectors.DefaultSelector() as selector, channel:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not channel:
                    _report(channel, selector, key)
                    continue
                order, descriptors, _, _ = socket.recv_fds(channel, LONGEST, 3)
                if not order:
                    return 0
                _fork(channel, selector, json.loads(order), descriptors)


def _fork(
    channel: socket.socket, selector: selectors.BaseSelector, order: dict[str, Any], descriptors: Sequence[int]
) -> None:
    if (pid := os.fork()) == 0:
        selector.close()
        channel.close()
        _become(order, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
    channel.send(json.dumps({"pid": pid}).encode())


def _report(channel: socket.socket, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    selector.unregister(key.fileobj)
    os.close(key.fd)
    _, status = os.waitpid(key.data, 0)
    channel.send(json.dumps({"pid": key.data, "code": os.waitstatus_to_exitcode(status)}).encode())


def _become(order: dict[str, Any], descriptors: Sequence[int]) -> Never:
    """In the child. It ends without the interpreter's own end, which takes seconds with torch loaded."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if order["new_session"]:
        os.setsid()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["environment"])
    code = 1
    try:
        code = _run(order["target"], order["arguments"])
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


def _run(target: str, arguments: list[str]) -> int:
    sys.argv = [target, *arguments]
    if not target.endswith(".py"):
        module, _, function = target.partition(":")
        return getattr(importlib.import_module(module), function)(arguments) or 0
    sys.path.insert(0, str(Path(target).parent))
    runpy.run_path(target, run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))
