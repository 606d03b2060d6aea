"""A rank of the run under chaos: it trains nothing, waits for the others in every step, and writes down what it ran.

`python -m chaos.trainer BOARD RECORDS EPOCH LIFE STEP_S`; RANK and WORLD_SIZE as under torchrun. It ends with its
parent. SIGUSR1 prints all stacks, SIGUSR2 holds the interpreter for as long as the board says.

It does what commands ask of it too: it saves a tiny checkpoint where one is requested, and has an action `mark`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

from pydantic import Field

import instep
from chaos.begun import Begun
from chaos.board import Board, Word
from chaos.saving import save

RUN: Final = "chaos"
ACTION: Final = "mark"
PATIENCE_S: Final = 240.0
POLL_S: Final = 0.002
_PR_SET_PDEATHSIG: Final = 1


class Hyper(instep.Hyperparameters):
    """What the operator changes. No validator in Python: what the schema accepts must be applied."""

    lr: float = Field(3e-4, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1)
    name: str = "adam"


class Records:
    """Where this rank writes each step from which on it runs with other values than before.

    One `write` a line, so that a SIGKILL leaves whole lines and all of them.
    """

    def __init__(self, path: Path, **place: int) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._place = place

    def write(self, **facts: object) -> None:
        line = json.dumps({**self._place, **facts, "at": time.monotonic()})
        os.write(self._descriptor, line.encode() + b"\n")


def main(arguments: list[str]) -> int:
    # Not in the parent: this holds for the thread that starts us, which is its main thread.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    board = Board(Path(arguments[0]), world_size)
    epoch, life, step_s = int(arguments[2]), int(arguments[3]), float(arguments[4])
    records = Records(Path(arguments[1]), rank=rank, epoch=epoch, life=life)
    begun = Begun(Path(arguments[1]).with_suffix(".steps"), life)
    signal.signal(signal.SIGUSR2, lambda *_: _hold_interpreter(board.get(rank, Word.HOLD_US)))
    board.set(rank, Word.PID, os.getpid())
    board.set(rank, Word.LIFE, life)
    try:
        with instep.join(RUN, Hyper, timeout_s=PATIENCE_S, etcd_patience_s=PATIENCE_S) as run:
            board.set(rank, Word.VIEW, run.view)
            records.write(event="joined", view=run.view, step=board.get(rank, Word.ARRIVED) + 1)
            last = train(run, board, records, begun, step_s)
            records.write(event="done", step=last, values=dict(run.config))
    except instep.InstepError as error:
        records.write(event="error", kind=type(error).__name__, text=str(error))
        return error.exit_code
    return 0


def train(run: instep.Run[Hyper], board: Board, records: Records, begun: Begun, step_s: float) -> int:
    """Steps in lockstep until the board says that it is enough; returns the last step."""
    before: dict[str, Any] | None = None
    rank, step = run.rank, board.get(run.rank, Word.ARRIVED) + 1
    folder = Path(os.environ["CHAOS_CHECKPOINTS"])

    @run.action(ACTION)
    def mark() -> None:
        records.write(event="acted", step=step, view=run.view)

    while step <= board.last_step:
        began = time.monotonic()
        stands = run.boundary(step)
        took_us = int((time.monotonic() - began) * 1e6)
        if stands != step:
            raise AssertionError(f"nobody asked for a restore, and step {step} became {stands}")
        if run.checkpoint_requested:  # before `begun`: whoever began a step has said what was asked of it
            records.write(event="requested", step=step, view=run.view)
        begun.write(step)
        if (now := dict(run.config)) != before:
            records.write(event="runs", step=step, view=run.view, values=now)
            before = now
        board.set(rank, Word.PASSED, step)
        board.set(rank, Word.VIEW, run.view)
        if took_us > board.get(rank, Word.LONGEST_BOUNDARY_US):
            board.set(rank, Word.LONGEST_BOUNDARY_US, took_us)
        run.report(loss=1.0 / (step + 1))
        time.sleep(step_s)
        if run.checkpoint_requested:
            records.write(event="saved", step=step, **save(run, step, folder))
        board.set(rank, Word.ARRIVED, step)
        while board.lowest_arrived() < step:
            time.sleep(POLL_S)
        step += 1
    return step - 1


def _hold_interpreter(for_us: int) -> None:
    ctypes.PyDLL(None).usleep(for_us)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
