"""One server process: started, signalled, stopped, with its output in a log file."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from instep.errors import EtcdError
from instep.etcd_server.health import wait_until

_STOP_TIMEOUT_S = 5.0
_KILL_TIMEOUT_S = 10.0
_PAUSE_TIMEOUT_S = 10.0
_PAUSE_POLL_S = 0.001

# Runs in the child before the server replaces it. A preexec_fn would run Python between fork and exec, which
# may deadlock in a parent with threads (grpc's, torch's). The parent may have died before prctl, hence the
# check of its pid.
_DIE_WITH_PARENT = """
import ctypes, os, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(sys.argv[2]), 0, 0, 0) != 0:
    sys.exit("prctl: " + os.strerror(ctypes.get_errno()))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[3], sys.argv[3:])
"""


class ServerProcess:
    """A running program in its own session, with its output appended to `log`.

    With `die_with_parent` the kernel sends it `parent_death_signal` when this process ends in any way, SIGKILL
    included; without it, the program keeps running.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        die_with_parent: bool = True,
        parent_death_signal: signal.Signals = signal.SIGKILL,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        python = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), str(int(parent_death_signal))]
        prefix = python if die_with_parent else []

        def spawn() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                return subprocess.Popen(
                    prefix + self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=dict(environment) if environment is not None else None,
                    start_new_session=True,
                    cwd=log.parent,
                )

        self._process = _spawner().call(spawn) if die_with_parent else spawn()
        self.pid = self._process.pid
        self.paused = False

    @property
    def exit_status(self) -> int | None:
        """Its exit status (minus the number of the signal that killed it); None while it runs."""
        return self._process.poll()

    def signal(self, number: signal.Signals) -> None:
        """Sends one signal. Raises EtcdError if the process has ended."""
        if self.exit_status is not None:
            raise EtcdError(f"etcd (pid {self.pid}) has ended with status {self.exit_status}")
        self._process.send_signal(number)

    def pause(self) -> None:
        """Freezes it (SIGSTOP). Returns when all of its threads have stopped; raises EtcdError after 10 s.

        The signal alone is not enough: a running thread continues for a moment after `kill` returns.
        """
        self.signal(signal.SIGSTOP)
        self.paused = True
        if not wait_until(self._stopped, timeout_s=_PAUSE_TIMEOUT_S, poll_s=_PAUSE_POLL_S):
            raise EtcdError(f"etcd (pid {self.pid}) did not stop within {_PAUSE_TIMEOUT_S:g} s of SIGSTOP")

    def resume(self) -> None:
        """Continues it (SIGCONT)."""
        self.signal(signal.SIGCONT)
        self.paused = False

    def wait(self) -> int:
        """Waits without limit until it ends. Returns its exit status."""
        return self._process.wait()

    def kill(self) -> None:
        """Kills it as a crash would (SIGKILL) and waits until it is gone."""
        self._process.kill()
        self._process.wait(_KILL_TIMEOUT_S)

    def send_kill(self) -> None:
        """Sends SIGKILL without waiting."""
        self._process.kill()

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Stops it with SIGTERM, paused or not, and with SIGKILL after `timeout_s`. Returns when it is gone."""
        if self.exit_status is not None:
            return
        self._process.terminate()
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def disown(self) -> None:
        """Leaves it running: this process does not wait for it any more."""
        # Popen warns about a child that it never saw end; this one is meant to outlive this process.
        self._process.returncode = 0

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the log, at most 64 KiB; empty if there is none."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 65536))
                text = file.read().decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _stopped(self) -> bool:
        try:
            tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
        except OSError:
            return True  # it has ended
        return all(_is_stopped(task) for task in tasks)

    def __repr__(self) -> str:
        status = self.exit_status
        return f"<ServerProcess pid={self.pid} {'running' if status is None else f'ended with {status}'}>"


def _is_stopped(task: Path) -> bool:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:
        return True  # it has ended


_Spawn = Callable[[], subprocess.Popen[bytes]]
_Result = Future[subprocess.Popen[bytes]]


class _Spawner:
    """A thread that never ends and starts the processes.

    The kernel sends the parent-death signal when the THREAD that forked ends, not the process: a server started in a
    short-lived thread would die with that thread.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._work: queue.SimpleQueue[tuple[_Spawn, _Result]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="instep-spawner", daemon=True).start()

    def call(self, spawn: _Spawn) -> subprocess.Popen[bytes]:
        result: _Result = Future()
        try:
            self._work.put((spawn, result))
            return result.result()
        except BaseException:  # such as Ctrl-C: no caller owns the process
            result.add_done_callback(_kill_unwanted)
            raise

    def _serve(self) -> None:
        while True:
            spawn, result = self._work.get()
            try:
                result.set_result(spawn())
            except OSError as error:
                result.set_exception(EtcdError(f"cannot start a server: {error}"))
            except Exception as error:  # noqa: BLE001  # such as a non-string argument: raised in the caller
                result.set_exception(error)
            del spawn, result


def _kill_unwanted(result: _Result) -> None:
    if result.exception() is None:
        result.result().kill()


_spawner_lock = threading.Lock()
_the_spawner: _Spawner | None = None


def _spawner() -> _Spawner:
    global _the_spawner
    with _spawner_lock:
        # A forked child has the object but not the thread.
        if _the_spawner is None or _the_spawner.owner != os.getpid():
            _the_spawner = _Spawner()
        return _the_spawner
