"""An agent that can be killed: a process with a handler, without torchrun around it, that does what it is told."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from chaos.harness.processes import children, command, runs
from torch.distributed.elastic.rendezvous import RendezvousParameters

from instep.torch._rendezvous.handler import create_handler

ANSWER_S = 60.0
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["guarded_agent"])  # torch is loaded once


class GuardedAgent:
    def __init__(self, params: RendezvousParameters, *, stdout: Connection | None = None, conda: bool = False) -> None:
        self._line, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, params, stdout, conda))
        self.process.start()
        theirs.close()
        assert self.process.pid is not None
        self.pid = self.process.pid
        self.left: int | None = None
        """Its guard, once it has been killed itself."""

    def says(self, told: str) -> Any:
        """What it answers to "join", "waiting", "heir" or "end"."""
        self.is_told(told)
        return self.answer()

    def is_told(self, told: str) -> None:
        self._line.send(told)

    def answer(self) -> Any:
        assert self._line.poll(ANSWER_S), "the agent did not answer"
        return self._line.recv()

    def kill(self) -> float:
        """Returns when."""
        self.left = self.left or self.guard()
        self.process.kill()
        self.process.join()
        return time.monotonic()

    def guard(self) -> int | None:
        """The process id of its guard."""
        found = [pid for pid in children(self.pid) if b"/guard.py" in command(pid)]
        assert len(found) < 2
        return found[0] if found else None


@contextmanager
def guarded_agents(*params: RendezvousParameters, **more: Any) -> Iterator[list[GuardedAgent]]:
    """Leaves none of them behind, nor their guards."""
    made = [GuardedAgent(one, **more) for one in params]
    try:
        yield made
    finally:
        for agent in made:
            agent.kill()
        until(lambda: not any(agent.left is not None and runs(agent.left) for agent in made))


def until(condition: Callable[[], bool], limit_s: float = ANSWER_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.01)  # nothing announces what a condition looks at


def _target(descriptor: Path) -> str:
    try:
        return os.readlink(descriptor)
    except FileNotFoundError:  # that of the listing itself
        return ""


def _serve(line: Connection, params: RendezvousParameters, stdout: Connection | None, conda: bool) -> None:
    if stdout is not None:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stdout.fileno(), 2)
        stdout.close()
    if conda:
        del os.pidfd_open
    handler = create_handler(params)
    while True:
        match line.recv():
            case "join":
                info = handler.next_rendezvous()
                line.send((info.rank, info.world_size))
            case "waiting":
                line.send(handler.num_nodes_waiting())
            case "heir":
                pipes = [int(fd.name) for fd in Path("/proc/self/fd").iterdir() if _target(fd).startswith("pipe:")]
                line.send(subprocess.Popen(["sleep", f"{ANSWER_S}"], pass_fds=pipes).pid)
            case "end":
                handler.shutdown()
                line.send(children(os.getpid()))
