"""What the rendezvous benchmark runs in processes that have loaded torch: agents, and handlers alone.

All is stock torch: torchrun's own main function, and the handler that its registry makes for a backend's name. torch is
imported where it is used: the measuring process imports this module without it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous import RendezvousHandler

PR_SET_PDEATHSIG = 1
Parameters = Mapping[str, Any]
"""Keywords of RendezvousParameters."""


def run_agent(arguments: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    """Runs `torchrun` with these arguments, like a new process."""
    from torch.distributed import run

    _die_with_the_parent()
    _print_to(log)
    os.environ.update(environment)
    run.main(list(arguments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The times of one handler, on the machine's monotonic clock."""

    called: float
    returned: float
    rank: int
    world_size: int


@dataclass(slots=True)
class Handlers:
    """Several handlers of one run, each in its own thread, like separate agents."""

    _handlers: list[RendezvousHandler] = field(default_factory=list)

    def open(self, params: Sequence[Parameters]) -> None:
        """Creates them, which connects them."""
        self._handlers = self._each(_make, params)

    def join(self, delays_s: Sequence[float]) -> list[Joined]:
        """Each joins after its delay. Returns when all have joined."""
        return self._each(_join_later, list(zip(self._handlers, delays_s, strict=True)))

    def come(self, params: Sequence[Parameters]) -> list[Joined]:
        """Each is created and joins at once; its time begins before it is created."""

        def arrive(one: Parameters) -> Joined:
            called = monotonic()
            handler = _make(one)
            self._handlers.append(handler)
            return _join(handler, called)

        return self._each(arrive, params)

    def leave(self) -> None:
        """All leave as after a clean finish."""
        handlers, self._handlers = self._handlers, []
        self._each(_leave, handlers)

    @staticmethod
    def _each(act: Callable[[Any], Any], subjects: Sequence[Any]) -> list[Any]:
        with ThreadPoolExecutor(max(1, len(subjects))) as threads:
            return list(threads.map(act, subjects))


def serve_handlers(line: Connection, environment: Mapping[str, str]) -> None:
    """Executes requests until its input ends: a method and its arguments, answered with its result."""
    _die_with_the_parent()
    _print_to(os.devnull)
    os.environ.update(environment)
    handlers = Handlers()
    while True:
        try:
            name, *arguments = line.recv()
        except EOFError:
            return
        try:
            line.send(getattr(handlers, name)(*arguments))
        except Exception as error:  # noqa: BLE001  # the measuring process reports it
            line.send(RuntimeError(f"{name}: {type(error).__name__}: {error}"))


def _make(params: Parameters) -> RendezvousHandler:
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

    return get_rendezvous_handler(RendezvousParameters(**params))


def _leave(handler: RendezvousHandler) -> None:
    handler.shutdown()


def _join_later(subject: tuple[RendezvousHandler, float]) -> Joined:
    handler, delay_s = subject
    sleep(delay_s)
    return _join(handler, monotonic())


def _join(handler: RendezvousHandler, called: float) -> Joined:
    info = handler.next_rendezvous()
    return Joined(called=called, returned=monotonic(), rank=info.rank, world_size=info.world_size)


def _die_with_the_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _print_to(path: str) -> None:
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
