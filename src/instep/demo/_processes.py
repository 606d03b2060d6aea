"""The demo's processes: started so that each can be found again, and none outlives the demo."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from instep.errors import InstepError
from instep.testing._health import wait_until

TAG: Final = "INSTEP_TAG"
"""The environment variable that every process of one demo inherits, however deep: torchrun's workers have
sessions of their own and the node's agent is nobody's child, so neither groups nor parents would find them."""
END_S: Final = 8.0
"""torchrun needs a moment to end its workers when it is told to end."""
LEAVE_S: Final = 4.0
"""How long the agent may take to leave after its last worker."""
_POLL_S: Final = 0.05
_TAIL_LINES: Final = 25

# Runs in the child before the program replaces it: the kernel then tells it when the demo was killed outright.
_END_WITH_PARENT = """
import ctypes, os, sys
PR_SET_PDEATHSIG, SIGTERM = 1, 15
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGTERM, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Program:
    """A Python program in a session of its own: Ctrl-C reaches the demo alone, which ends it in order.

    An async context manager; on leaving the program is told to end (SIGTERM), and killed after 8 s.
    """

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], *, log: Path, tell: Callable[[str], None]
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._tell = tell
        self._output: IO[bytes] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._output = self._log.open("wb")
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), sys.executable),
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=dict(self._environment),
            start_new_session=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        assert self._output is not None
        self._output.close()
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), END_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()

    async def wait(self) -> None:
        """Returns when it has ended well. Tells the end of its log and raises InstepError when it ended badly."""
        assert self._process is not None
        status = await self._process.wait()
        if status != 0:
            lines = self._log.read_text(errors="replace").splitlines()
            self._tell("\n".join(lines[-_TAIL_LINES:]))
            raise InstepError(f"{self._log.stem} ended with status {status}: the end of its log is shown above")


def sweep(mark: str) -> list[int]:
    """Wait until every process that carries the mark is gone, at most 4 s; kill those that stay.

    Returns the pids that had to be killed.
    """
    wait_until(lambda: not marked(mark), timeout_s=LEAVE_S, poll_s=_POLL_S)
    return [pid for pid in marked(mark) if _kill(pid, mark)]


def marked(mark: str) -> list[int]:
    """Processes of ours that carry the mark."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in pids if _carries(pid, mark)]


def _carries(pid: int, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False  # gone meanwhile, or somebody else's
    return f"{TAG}={mark}".encode() in environment.split(b"\0")


def _kill(pid: int, mark: str) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Looked at again while the descriptor pins the process: its number may have passed to another.
        if not _carries(pid, mark):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True
