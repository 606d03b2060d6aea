"""A rank of a run under faults: it trains nothing, waits for the others in every step, and records what it ran.

`python -m chaos.trainer SPEC`, with RANK and WORLD_SIZE as under torchrun. It ends with its parent. SIGUSR1 prints
all stacks; SIGUSR2 holds the interpreter for as long as the shared state says.

It executes commands: it saves a checkpoint when one is requested, and has an action `mark`. A rank that restores begins
with the step after its checkpoint; any other with the first step that it has not done, as if its state had been fetched
from its peers.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field

import instep
from chaos.harness.records import RecordWriter
from chaos.harness.shared_state import Field as Shared
from chaos.harness.shared_state import SharedState
from chaos.harness.step_log import StepLog
from chaos.savers import Saver

ACTION: Final = "mark"
POLL_S: Final = 0.002
_PR_SET_PDEATHSIG: Final = 1


class Hyper(instep.Hyperparameters):
    """What the operator changes. No validator in Python: what the schema accepts must be applied."""

    lr: float = Field(3e-4, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1)
    name: str = "adam"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec:
    """The options of a rank. `saver` names its class, `module:Class`; `seed` determines what it saves, and when."""

    run: str
    shared: str
    records: str
    folder: str
    """Where checkpoints are saved."""
    saver: str
    step_s: float
    patience_s: float
    seed: int = 0
    background: bool = False
    """Whether to save in the background, if the saver can."""
    epoch: int = 1
    """How often all ranks have started."""
    process: int = 1
    """The number of this process of the rank, counted from 1."""

    @property
    def as_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> Self:
        return cls(**json.loads(text))


class WarningRecorder(logging.Handler):
    """Records the warnings that an operator would read."""

    def __init__(self, records: RecordWriter) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.write("warned", text=record.getMessage())


class Trainer:
    def __init__(self, spec: TrainerSpec, rank: int, world_size: int) -> None:
        self._rank = rank
        self._spec = spec
        self._shared = SharedState(Path(spec.shared), world_size)
        path = Path(spec.records)
        self._records = RecordWriter(path, rank=rank, epoch=spec.epoch, life=spec.process)
        self._steps = StepLog(path.with_suffix(".steps"), spec.process)
        self._values: dict[str, Any] | None = None
        self._step = 0

    def run(self) -> int:
        """The exit code."""
        spec, shared = self._spec, self._shared
        signal.signal(signal.SIGUSR2, lambda *_: _hold_interpreter(shared.get(self._rank, Shared.HOLD_US)))
        logging.getLogger("instep").addHandler(WarningRecorder(self._records))
        shared.set(self._rank, Shared.PID, os.getpid())
        shared.set(self._rank, Shared.LIFE, spec.process)
        try:
            with instep.join(spec.run, Hyper, timeout_s=spec.patience_s, etcd_patience_s=spec.patience_s) as run:
                shared.set(self._rank, Shared.VIEW, run.view)
                run.action(ACTION)(lambda: self._write("acted", view=run.view))
                self._train(run)
        except instep.InstepError as error:
            self._records.write("error", kind=type(error).__name__, text=str(error))
            return error.exit_code
        return 0

    def _train(self, run: instep.Run[Hyper]) -> None:
        """Steps in lockstep until the shared state ends the run, or the run is stopped."""
        self._step = self._shared.get(self._rank, Shared.ARRIVED) + 1
        self._write("joined", view=run.view)
        saver = _saver(run, self._spec, self._records)
        if saver.restores:
            checkpoint_id, self._step, digest = saver.restore()
            self._records.write("restored", id=checkpoint_id, next=self._step, digest=digest)
        while self._step <= self._shared.last_step:
            self._pass_boundary(run)
            if run.stopped is not None:
                self._write("stopped")
                return
            self._begin_step(run)
            time.sleep(self._spec.step_s)
            if run.checkpoint_requested or saver.wants(self._step):
                self._save(saver)
            self._reduce_all()
            self._step += 1
        self._records.write("done", step=self._step - 1, values=dict(run.config))

    def _pass_boundary(self, run: instep.Run[Hyper]) -> None:
        began = time.monotonic()
        step = run.boundary(self._step)
        took_us = int((time.monotonic() - began) * 1e6)
        if step != self._step:
            raise AssertionError(f"step {self._step} became {step} without a restore")
        if took_us > self._shared.get(self._rank, Shared.LONGEST_BOUNDARY_US):
            self._shared.set(self._rank, Shared.LONGEST_BOUNDARY_US, took_us)

    def _begin_step(self, run: instep.Run[Hyper]) -> None:
        if run.checkpoint_requested:  # before the step log: a rank in a step has recorded the request
            self._write("requested", view=run.view)
        self._steps.write(self._step)
        if (now := dict(run.config)) != self._values:
            self._write("runs", view=run.view, values=now)
            self._values = now
        self._shared.set(self._rank, Shared.PASSED, self._step)
        self._shared.set(self._rank, Shared.VIEW, run.view)
        run.report(loss=1.0 / (self._step + 1))

    def _save(self, saver: Saver) -> None:
        """Saves; no error of a checkpoint ends the training."""
        try:
            self._write("saved", **saver.save(self._step))
        except instep.Fenced as fenced:
            self._write("fenced", token=fenced.token, text=str(fenced))
        except instep.CheckpointError as error:
            self._write("failed", text=str(error))

    def _reduce_all(self) -> None:
        """Waits for all ranks, so a dead rank blocks the others here."""
        self._shared.set(self._rank, Shared.ARRIVED, self._step)
        while self._shared.lowest_arrived() < self._step:
            time.sleep(POLL_S)

    def _write(self, event: str, **facts: object) -> None:
        self._records.write(event, step=self._step, **facts)


def _saver(run: instep.Run[Hyper], spec: TrainerSpec, records: RecordWriter) -> Saver:
    module, _, name = spec.saver.partition(":")
    saver: Saver = getattr(importlib.import_module(module), name)(run, spec, records)
    return saver


def _hold_interpreter(for_us: int) -> None:
    ctypes.PyDLL(None).usleep(for_us)


def main(arguments: Sequence[str]) -> int:
    # Not in the parent: this applies to the thread that starts us, which is its main thread.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    return Trainer(TrainerSpec.of(arguments[0]), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
