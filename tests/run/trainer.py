"""A small training process for the tests: steps, records what it ran with, and can be made to misbehave."""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, model_validator

import instep
from instep.worker import agent_connection


class Hyper(instep.Hyperparameters):
    lr: float = Field(3e-4, gt=0, le=1)
    clip: float = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1)
    name: str = "adam"
    dropout: float = instep.fixed(0.1)

    @model_validator(mode="after")
    def _clip_above_lr(self) -> Hyper:
        if self.clip <= self.lr:
            raise ValueError("clip must be above lr")
        return self


class OtherHyper(instep.Hyperparameters):
    lr: float = 1.0


SCHEMAS = {"hyper": Hyper, "other": OtherHyper, "none": None}


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


@contextmanager
def said_errors() -> Iterator[None]:
    """Prints an error at once: leaving a run without etcd takes seconds."""
    try:
        yield
    except instep.InstepError as error:
        say(event="error", kind=type(error).__name__, text=str(error), exit_code=error.exit_code)
        raise


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="gpt-a")
    parser.add_argument("--schema", default="hyper", choices=SCHEMAS)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--step-s", type=float, default=0.01)
    parser.add_argument("--stop-file", type=Path, required=True)
    parser.add_argument("--timeout-s", type=float, default=60)
    parser.add_argument("--patience-s", type=float, default=120)
    parser.add_argument("--misbehave-after", type=int, default=20, help="so many steps")
    parser.add_argument("--misbehave-at-change", action="store_true", help="in the first step with another config")
    parser.add_argument("--hold-gil-s", type=float, default=0)
    parser.add_argument("--hold-gil", type=Path, help="until no other process has locked this file")
    parser.add_argument("--hold-promise", type=Path, help="waits in a step after a promise while this file is there")
    parser.add_argument("--fork", type=int, default=0)
    parser.add_argument("--child-s", type=float, default=0.2)
    parser.add_argument("--barrier", type=Path)
    parser.add_argument("--action", action="append", default=[], choices=["evaluate"])
    parser.add_argument("--restores", action="store_true")
    parser.add_argument("--save-to", type=Path)
    parser.add_argument("--linger-s", type=float, default=0)
    parser.add_argument("--save-s", type=float, default=0)
    parser.add_argument("--replay")
    parser.add_argument("--prefer", default="etcd")
    parser.add_argument("--take-over", action="store_true")
    parser.add_argument("--silence-s", type=float, default=agent_connection.SILENCE_S)
    options = parser.parse_args()
    agent_connection.SILENCE_S = options.silence_s
    try:
        with said_errors():
            run = instep.join(
                options.run,
                SCHEMAS[options.schema],
                timeout_s=options.timeout_s,
                etcd_patience_s=options.patience_s,
                replay=options.replay,
                take_over=options.take_over,
                prefer=options.prefer,
            )
        say(event="joined", rank=run.rank, view=run.view, config=dict(run.config), pid=os.getpid())
        with run, said_errors():
            train(run, options)
    except instep.InstepError as error:
        return error.exit_code
    if options.linger_s:
        say(event="left")
        time.sleep(options.linger_s)
    return 0


def train(run: instep.Run[instep.Hyperparameters], options: argparse.Namespace) -> None:
    """Prints each step at which the config differs from that of the previous step, and the longest boundary."""
    before: dict[str, object] | None = None
    longest_s, step, led = 0.0, options.start, False
    forked: list[int] = []
    deeds = {"evaluate": lambda: say(event="evaluate", after=step - 1)}
    for name in options.action:
        run.action(name)(deeds[name])
    if options.restores:
        run.on_restore(lambda manifest: say(event="restored", id=manifest.id, at=step))
    while step < options.steps and not options.stop_file.exists():
        began = time.monotonic()
        step = run.boundary(step)
        if run.stopped is not None:
            say(event="stopped", step=step, reason=run.stopped)
            break
        if run.checkpoint_requested:
            say(event="asked to save", step=step)
            save(run, step, options.save_to, options.save_s)
        longest_s = max(longest_s, time.monotonic() - began)
        if run.leads != led:
            led = run.leads
            say(event="leads", leads=led, step=step, at=time.monotonic())
        now = dict(run.config)
        changed = before is not None and now != before
        if now != before:
            say(event="config", step=step, config=now)
            before = now
        is_due = changed if options.misbehave_at_change else step == options.start + options.misbehave_after
        if is_due:
            misbehave(options, forked)
        if options.hold_promise and options.hold_promise.exists():
            hold_promise(run, options.hold_promise)
        if options.barrier and options.barrier.exists():
            wait_at(options.barrier)
        run.report(loss=1.0 / (step + 1))
        time.sleep(options.step_s)
        step += 1
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in forked]
    say(
        event="done",
        step=step,
        longest_boundary_s=longest_s,
        leads=run.leads,
        view=run.view,
        children=codes,
        threads=threading.active_count(),
        grpc="grpc" in sys.modules,
        torch="torch" in sys.modules,
    )


def save(run: instep.Run[instep.Hyperparameters], step: int, folder: Path | None, takes_s: float) -> None:
    """Does nothing without a folder: a loop that does not check `checkpoint_requested`."""
    if folder is None:
        return
    with run.checkpoint(step, folder=folder) as slot:
        if slot is not None:
            time.sleep(takes_s)
            (slot.path / "state").write_text(f"step {step}")


def wait_at(barrier: Path) -> None:
    """Waits inside a step while the file exists, as a collective does for a missing rank."""
    say(event="waiting")
    while barrier.exists():
        time.sleep(0.01)


def hold_promise(run: instep.Run[instep.Hyperparameters], file: Path) -> None:
    """Once it has promised: waits inside the step, so its gate stays ahead as long as the file exists."""
    number = run._agreement.gate.undecided
    if number is None:
        return
    say(event="promised", plan=number)
    while file.exists():
        time.sleep(0.01)


def misbehave(options: argparse.Namespace, forked: list[int]) -> None:
    if options.hold_gil_s:
        say(event="holding")
        ctypes.PyDLL(None).usleep(int(options.hold_gil_s * 1e6))
        say(event="held")
    if options.hold_gil:
        with options.hold_gil.open() as file:
            say(event="holding")
            ctypes.PyDLL(None).flock(file.fileno(), fcntl.LOCK_EX)
        say(event="held")
    for _ in range(options.fork):
        pid = os.fork()
        if pid == 0:
            time.sleep(options.child_s)
            os._exit(0)
        forked.append(pid)
    if forked:
        say(event="forked", pids=forked)


if __name__ == "__main__":
    sys.exit(main())
