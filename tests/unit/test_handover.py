"""How the end of a process that is not our child is described."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from instep.agent import failures
from instep.agent.ending import how_it_ended
from instep.agent.workers import LocalWorker
from instep.protocol.records import Member
from instep.protocol.schema import Schema
from instep.wire.messages import Leave
from instep.worker.failure import in_words
from unit.parts import incarnation


@contextmanager
def watched(code: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(process.pid)
    try:
        yield process, pidfd
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
        os.close(pidfd)


def ended(pid: int) -> None:
    """Waits for the end of the process and leaves the zombie."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("pass", "ended with exit code 0"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9 (SIGKILL)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 3)", "killed by signal 37"),
    ],
)
def test_the_end_of_a_zombie_process_is_known(code: str, how: str) -> None:
    with watched(code) as (process, pidfd):
        ended(process.pid)
        assert how_it_ended(process.pid, pidfd) == how
        assert how_it_ended(process.pid, -1) == how
        process.wait()
        assert how_it_ended(process.pid, pidfd) in (how, None)  # as the kernel can
        assert how_it_ended(process.pid, -1) is None


def test_a_living_process_has_no_end() -> None:
    with watched("input()") as (process, pidfd):
        assert how_it_ended(process.pid, pidfd) is None
        process.send_signal(signal.SIGKILL)


# -- what is said of a worker ----------------------------------------------------------------------------------------


def left(error: BaseException | None) -> Leave:
    return Leave(False, 5, *in_words(error))


def worker() -> LocalWorker:
    member = Member(
        rank=3, world_size=4, incarnation=incarnation(1), node="a", host="h", pid=7, schema_digest="d", view=2
    )
    connection: Any = None
    return LocalWorker(member, Schema(None), connection, view=2)


def test_an_exception_is_one_line_with_its_name_and_text() -> None:
    told = failures.of_exception(worker(), left(RuntimeError("CUDA\x1b[31m out\n of   memory" + "x" * 500)))
    assert (told.rank, told.view, told.cause) == (3, 2, "RuntimeError")
    assert told.text is not None
    assert told.text.startswith("CUDA[31m out of memoryxxx")
    assert len(told.text) <= 200


def test_an_exception_without_a_usable_text_is_described_too() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    told = failures.of_exception(worker(), left(Mute()))
    assert (told.cause, told.text) == ("Mute", "(its text cannot be read: ValueError)")


def test_an_early_exit_without_a_reason_is_described() -> None:
    assert failures.of_exception(worker(), left(None)).cause == "left early"


def test_a_death_is_described_as_far_as_it_is_known() -> None:
    assert failures.of_death(worker(), "killed by signal 9 (SIGKILL)").cause == "killed by signal 9 (SIGKILL)"
    assert failures.of_death(worker(), None).cause == "ended without reporting a reason"
    assert "with instep.join" in (failures.of_death(worker(), "ended with exit code 0").text or "")
