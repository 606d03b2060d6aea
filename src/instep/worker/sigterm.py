"""The process's handler of SIGTERM while runs are open: the first signal is a preemption notice, the second takes
its usual effect.

Further signals (`notice_signals`) are only notices, however often they arrive: a scheduler sends them before
SIGTERM.

The handler only calls the listeners, because it may run between any two instructions of the main thread. It does not
call the former handler at the first signal: such handlers leave, or save and leave, and a rank that does so alone
does it at another step than the others.

Signals within `SAME_S` of the first count as the same one: a scheduler that signals every process of a job signals
torchrun and its ranks, and torchrun signals the ranks again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Final, TypeAlias

from instep.errors import SettingsError

SAME_S: Final = 3.0
VARIABLE: Final = "INSTEP_NOTICE_SIGNALS"
USABLE: Final = ("USR1", "USR2", "HUP", "INT", "XCPU")

log = logging.getLogger("instep")

Listener: TypeAlias = Callable[[], None]
Former: TypeAlias = Callable[[int, FrameType | None], object] | int | signal.Handlers

_listeners: tuple[weakref.WeakMethod[Listener], ...] = ()
_former: Former = signal.SIG_DFL
_further: dict[int, Former] = {}
"""The former handlers of further notice signals."""
_heard_at: float | None = None
heard: str = "SIGTERM"
"""The newest notice signal."""
_pid = 0


def notice_signals(environ: Mapping[str, str]) -> tuple[int, ...]:
    """The signals that are notices besides SIGTERM: from INSTEP_NOTICE_SIGNALS (`USR1,USR2`; `none`), else SIGUSR1
    in a Slurm job, if the script does not handle it. Raises SettingsError for one that cannot be used."""
    text = environ.get(VARIABLE, "").strip()
    if not text:
        is_free = signal.getsignal(signal.SIGUSR1) in (signal.SIG_DFL, _note)
        return (signal.SIGUSR1,) if "SLURM_JOB_ID" in environ and is_free else ()
    names = [name.strip().upper().removeprefix("SIG") for name in text.split(",")]
    if unknown := [name for name in names if name not in (*USABLE, "TERM", "NONE")]:
        raise SettingsError(
            f"{VARIABLE} is {text!r}: {unknown[0]!r} cannot give notice; use some of {', '.join(USABLE)}"
        )
    return tuple(signal.Signals[f"SIG{name}"] for name in names if name in USABLE)


def listen(listener: Listener, further: Iterable[int] = ()) -> None:
    """Calls the bound method at the first SIGTERM, in the main thread; holds it weakly. A second signal, three
    seconds later or more, goes to the former handler, or ends the process. `further`: signals that are also notices.

    Limit: does nothing outside the main thread, if SIGTERM is ignored, and if C code handles it (that handler could
    not be restored).
    """
    global _listeners, _former, _heard_at, _pid
    if threading.current_thread() is not threading.main_thread():
        log.info("the run was not joined in the main thread: SIGTERM does what it did before")
        return
    if not _is_installed():
        former = signal.getsignal(signal.SIGTERM)
        if former is None:
            log.warning("SIGTERM is handled by C code already, and is left to it: give notice with 'instep stop'")
            return
        if former == signal.SIG_IGN:
            log.info("SIGTERM is ignored, and stays so: give notice with 'instep stop'")
            return
        _listeners = _living() if os.getpid() == _pid else ()
        _former, _heard_at, _pid = former, None, os.getpid()
        signal.signal(signal.SIGTERM, _handle)
    _listeners = (*_others(listener), weakref.WeakMethod(listener))
    for number in further:
        former = signal.getsignal(number)
        if former is not None and former != _note:
            _further[number] = former
            signal.signal(number, _note)


def replaced() -> str | None:
    """The handler that has replaced ours for SIGTERM while a run listens; None if there is none."""
    if not _living() or os.getpid() != _pid or _is_installed():
        return None
    handler = signal.getsignal(signal.SIGTERM)
    return f"{getattr(handler, '__module__', '?')}.{getattr(handler, '__qualname__', handler)}"


def ignore(listener: Listener) -> None:
    """Undoes `listen`. After the last listener, restores the former handler, if ours is still installed."""
    global _listeners
    _listeners = _others(listener)
    if not _listeners:
        _put_further_back()
        if _is_installed():
            _put_back()


def hand_on() -> None:
    """Raises the noticed signal again, for the former handler. Not while other runs listen: they have noticed it
    too."""
    if not _living() and heard == "SIGTERM":
        signal.raise_signal(signal.SIGTERM)


def _handle(number: int, frame: FrameType | None) -> None:
    global _heard_at, heard
    listeners = [listener for reference in _listeners if (listener := reference()) is not None]
    now = time.monotonic()
    _heard_at = now if _heard_at is None else _heard_at
    if now - _heard_at >= SAME_S or not listeners or os.getpid() != _pid:
        _put_back()
        signal.raise_signal(number)
        return
    heard = "SIGTERM"
    for listener in listeners:
        listener()


def _note(number: int, frame: FrameType | None) -> None:
    global heard
    listeners = [listener for reference in _listeners if (listener := reference()) is not None]
    if not listeners or os.getpid() != _pid:
        _put_further_back()
        signal.raise_signal(number)
        return
    heard = signal.Signals(number).name
    for listener in listeners:
        listener()


def _others(listener: Listener) -> tuple[weakref.WeakMethod[Listener], ...]:
    return tuple(reference for reference in _living() if reference() != listener)


def _put_further_back() -> None:
    """Restores the handlers of further signals, if ours are still installed."""
    for number, former in list(_further.items()):
        with contextlib.suppress(ValueError):  # in another thread: the handler itself restores it
            if signal.getsignal(number) == _note:
                signal.signal(number, former)
            del _further[number]


def _living() -> tuple[weakref.WeakMethod[Listener], ...]:
    return tuple(reference for reference in _listeners if reference() is not None)


def _is_installed() -> bool:
    return signal.getsignal(signal.SIGTERM) == _handle


def _put_back() -> None:
    with contextlib.suppress(ValueError):  # in another thread: the handler itself restores it
        signal.signal(signal.SIGTERM, _former)


# The parent ends a forked child as usual, by SIGTERM. The signal is blocked during the fork: Python drops signals that
# reach a child before it is set up, and the parent would wait forever.


def _before_fork() -> None:
    _forking.blocked = _is_installed() and signal.SIGTERM not in signal.pthread_sigmask(
        signal.SIG_BLOCK, (signal.SIGTERM,)
    )


def _in_parent() -> None:
    if _forking.blocked:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))


def _in_child() -> None:
    global _listeners
    _listeners = ()
    _put_further_back()
    if _is_installed():
        _put_back()
    _in_parent()


_forking = threading.local()
os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
