"""The proof: what was steered live is trained again from its schedule, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from run.harness import SOURCE, Event, TrainingRun, wait_for

pytest.importorskip("torch")

SCRIPT = Path(__file__).with_name("replay_trainer.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]


class Ranks:
    """Two ranks under torchrun, and all that they said."""

    def __init__(self, environment: dict[str, str], stop_file: Path, *arguments: str) -> None:
        self.stop_file = stop_file
        self.events: list[Event] = []
        self.errors: list[str] = []
        self.process = subprocess.Popen(
            [*TORCHRUN, f"--stop-file={stop_file}", *arguments],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.events.append(json.loads(line))

    def _read_errors(self) -> None:
        self.errors.extend(self.process.stderr or ())

    def said(self, event: str) -> list[Event]:
        return [item for item in list(self.events) if item["event"] == event]

    def wait_joined(self) -> None:
        wait_for(lambda: len(self.said("joined")) == 2 or self.process.poll() is not None, "the ranks")
        assert self.process.poll() is None, self.errors

    def end(self) -> list[Event]:
        """What the two ranks ended with."""
        assert self.process.wait(120) == 0, self.errors
        for reader in self._readers:
            reader.join()
        done = self.said("done")
        assert len(done) == 2, self.events
        return done

    def changes(self, rank: int) -> list[tuple[int, dict[str, Any]]]:
        return [(event["step"], event["config"]) for event in self.said("config") if event["rank"] == rank]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        for reader in self._readers:
            reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextmanager
def ranks(training: TrainingRun, stop_file: Path, *arguments: str, namespace: str = "") -> Iterator[Ranks]:
    started = Ranks(environment(training, namespace), stop_file, *arguments)
    try:
        yield started
    finally:
        started.close()


def environment(training: TrainingRun, namespace: str = "") -> dict[str, str]:
    return {
        **os.environ,
        **training.environment(),
        "PYTHONPATH": str(SOURCE),
        "INSTEP_NAMESPACE": namespace or training.namespace,
    }


def command(training: TrainingRun, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "instep", *arguments],
        env=environment(training),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def hashes(*done: list[Event]) -> set[str]:
    return {event["hash"] for events in done for event in events}


def test_a_run_steered_live_is_repeated_bit_for_bit_from_its_schedule(training: TrainingRun, tmp_path: Path) -> None:
    file = tmp_path / "schedule.json"
    with ranks(training, tmp_path / "stop", "--step-s=0.002") as live:
        live.wait_joined()
        command(training, "set", "ddp", "lr=0.05", "--wait", "--why", "loss spike")
        command(training, "set", "ddp", "momentum=0.8", "clip=0.5", "--wait")
        command(training, "rollback", "ddp", "--wait")
        command(training, "set", "ddp", "lr=0.01", "--wait")
        live.stop_file.touch()
        steered = live.end()
    assert len({event["steps"] for event in steered}) == 1
    command(training, "history", "ddp", "--export", str(file))
    steps = steered[0]["steps"]

    again = (f"--replay={file}", f"--steps={steps}")
    with ranks(training, tmp_path / "never", *again, namespace=f"{training.namespace}-again") as replay:
        replayed = replay.end()
        for rank in (0, 1):
            assert replay.changes(rank) == live.changes(rank)
    assert len(live.changes(0)) == 5
    assert len(hashes(steered, replayed)) == 1

    with ranks(training, tmp_path / "never", f"--steps={steps}", namespace=f"{training.namespace}-plain") as unsteered:
        assert hashes(unsteered.end()) != hashes(steered)
