"""Keeps DataLoader workers alive at a SIGTERM that is meant for the training process, and warns when a forked child
reads the run's values.

torchrun signals the whole process group of a rank, and some schedulers signal every process of a job. A DataLoader
worker that dies from that makes its DataLoader raise in the middle of a step, before the ranks can save. So in such
a worker a thread takes SIGTERM in place of torch's handler: a signal from the process that the worker serves ends
the worker, as usual; any other one is ignored while that process lives. The training process itself gets no thread.

`join` turns this on, by `protect`, for workers that its process starts after that. Importing this module changes
nothing, except in a child of such a process.

Works for workers created by `fork`; by `spawn`, if the script imports instep at its top level and before numpy and
torch, whose threads would get the signal; by `forkserver`, if the server has loaded the script, which older Pythons
fail to do (gh-126631). Limit: a program that a worker starts other than by `subprocess` inherits the blocked signal.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Final

from instep.names import PROTECTED_VARIABLE

log = logging.getLogger("instep")

LOADERS: Final = ("torch.utils.data.", "torchdata.")
"""Modules of processes that serve a training process and need no SIGTERM of their own."""
LOOK_S: Final = 1.0
"""How often a worker that got a SIGTERM checks whether the process that it serves has ended."""

_TERM: Final = (signal.SIGTERM,)


class _Anchor:
    """multiprocessing drops its callback when this object is gone."""


_anchor = _Anchor()
_is_on = False
_registered = False
_is_server = False
_has_warned = mmap.mmap(-1, 1)
"""Shared with all forked children: 1 after one of them has logged that its config keeps the values of the fork."""


def warn_of_copied_config(step: int) -> None:
    """In a forked child that reads the config of a run, of which `step` was begun last. Only one of all children logs
    it."""
    if not _has_warned[0]:
        _has_warned[0] = 1
        log.warning(
            "run.config is read in process %d, a child of the training process, such as a worker of a DataLoader: "
            "there it keeps the values of the fork (%s) and receives no changes; read run.config in the "
            "training process and make the batch of a step there, as docs/howto/data-loaders.md shows",
            os.getpid(),
            f"after step {step}" if step >= 0 else "before the first step",
        )


def protect() -> None:
    """Protects DataLoader workers that this process starts after this call from a SIGTERM of other processes."""
    os.environ[PROTECTED_VARIABLE] = str(os.getpid())
    _turn_on()


def _turn_on() -> None:
    global _is_on
    if not _is_on:
        _is_on = True
        os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
    _register()


def _register() -> None:
    """Has multiprocessing call `_guard` in each child before its work begins. Does nothing while multiprocessing is
    not in use."""
    global _registered
    util: Any = sys.modules.get("multiprocessing.util")
    if util is not None and not _registered:
        _registered = True
        util.register_after_fork(_anchor, _guard)


def _continue() -> None:
    """Runs when this import is part of the start of a protected process's child."""
    process: Any = sys.modules.get("multiprocessing.process")
    if process is None or _protected() is None or not getattr(process.current_process(), "_inheriting", False):
        return
    _turn_on()
    if os.getppid() == _protected():
        _begin()


def _protected() -> int | None:
    pid = os.environ.get(PROTECTED_VARIABLE, "")
    return int(pid) if pid.isascii() and pid.isdecimal() else None


def _begin() -> None:
    """The server that forks children must survive the signal. A spawned child does not call registered callbacks."""
    global _is_server
    server, context = sys.modules.get("multiprocessing.forkserver"), sys.modules["multiprocessing.context"]
    running = _running()
    if server is None or server.main.__code__ not in running:
        signal.pthread_sigmask(signal.SIG_BLOCK, _TERM)  # in all threads that start after this
        context.SpawnProcess._after_fork = staticmethod(_after_spawn)
    elif server._serve_one.__code__ not in running:
        _is_server = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _after_spawn() -> None:
    _guard(_anchor)
    if not _is_guarded():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERM)


def _running() -> set[object]:
    """The code objects of all functions on this thread's stack."""
    codes: set[object] = set()
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        codes.add(frame.f_code)
        frame = frame.f_back
    return codes


def _before_fork() -> None:
    if _is_server:
        signal.pthread_sigmask(signal.SIG_BLOCK, _TERM)


def _in_parent() -> None:
    if _is_server:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERM)


def _in_child() -> None:
    global _is_server
    _register()
    if _is_server:
        _is_server = False
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERM)


def _is_guarded() -> bool:
    """Whether this process is a DataLoader's worker."""
    import multiprocessing

    process, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    place = f"{getattr(getattr(process, '_target', None), '__module__', None)}."
    served = parent is not None and parent.pid == _protected()
    return served and bool(process.daemon) and place.startswith(LOADERS)


def _guard(anchor: object) -> None:
    """In a child, before its work begins."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or not _is_guarded():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERM)
    _spare_programs()
    threading.Thread(target=_wait, args=(os.getppid(), parent.pid), name="instep-sigterm", daemon=True).start()


def _wait(parent: int, served: int) -> None:
    """`parent` is not the process that is served if a fork server is in between."""
    told: signal.struct_siginfo | None = signal.sigwaitinfo(_TERM)
    while told is None or told.si_pid not in (parent, served):
        if os.getppid() != parent or not _lives(served):
            break
        told = signal.sigtimedwait(_TERM, LOOK_S)
    os._exit(0)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _spare_programs() -> None:
    """A program that the worker starts must die from SIGTERM as usual: blocked signals are inherited."""
    import subprocess

    popen: Any = subprocess.Popen
    start = popen._execute_child

    def start_unblocked(*args: Any, **kwargs: Any) -> None:
        before = signal.pthread_sigmask(signal.SIG_UNBLOCK, _TERM)
        try:
            start(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    popen._execute_child = start_unblocked


_continue()
