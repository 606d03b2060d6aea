"""The proof: a run that was steered live is trained again from its schedule, bit for bit."""

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
from chaos.harness.fork_server import ForkedProcess, ForkServer

from instep.etcd_server.ports import free_ports
from instep.schedule import Schedule
from run.harness import SOURCE, Event, TrainingRun, wait_for

pytest.importorskip("torch")

SCRIPT = Path(__file__).with_name("replay_trainer.py")


class Ranks:
    """Two ranks of one process group, and all their output."""

    def __init__(self, fork_server: ForkServer, environment: dict[str, str], stop_file: Path, *arguments: str) -> None:
        self.stop_file = stop_file
        self.events: list[Event] = []
        self.errors: list[str] = []
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1, "127.0.0.1")[0]), "WORLD_SIZE": "2"}
        self.processes = [
            fork_server.start(
                SCRIPT,
                [f"--stop-file={stop_file}", *arguments],
                {**environment, **meeting, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            )
            for rank in (0, 1)
        ]
        self._readers = [
            threading.Thread(target=read, args=(process,), daemon=True)
            for process in self.processes
            for read in (self._read, self._read_errors)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, process: ForkedProcess) -> None:
        for line in process.stdout:
            self.events.append(json.loads(line))

    def _read_errors(self, process: ForkedProcess) -> None:
        self.errors.extend(process.stderr)

    def said(self, event: str) -> list[Event]:
        return [item for item in list(self.events) if item["event"] == event]

    def wait_joined(self) -> None:
        def joined_or_ended() -> bool:
            return len(self.said("joined")) == 2 or any(process.poll() is not None for process in self.processes)

        wait_for(joined_or_ended, "the ranks")
        assert len(self.said("joined")) == 2, self.errors

    def end(self) -> list[Event]:
        """The final state of the two ranks."""
        assert [process.wait(120) for process in self.processes] == [0, 0], self.errors
        for reader in self._readers:
            reader.join()
        done = self.said("done")
        assert len(done) == 2, self.events
        return done

    def changes(self, rank: int) -> list[tuple[int, dict[str, Any]]]:
        return [(event["step"], event["config"]) for event in self.said("config") if event["rank"] == rank]

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
        for process in self.processes:
            process.wait(30)

    def close(self) -> None:
        self.kill()
        for reader in self._readers:
            reader.join()
        for process in self.processes:
            for pipe in (process.stdin, process.stdout, process.stderr):
                pipe.close()


@contextmanager
def ranks(
    fork_server: ForkServer, training: TrainingRun, stop_file: Path, *arguments: str, namespace: str = ""
) -> Iterator[Ranks]:
    started = Ranks(fork_server, environment(training, namespace), stop_file, *arguments)
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


def test_a_run_steered_live_is_repeated_bit_for_bit_from_its_schedule(
    training: TrainingRun, tmp_path: Path, fork_server: ForkServer
) -> None:
    """In one go; and again with a stop and a resumption from a checkpoint between two changes."""
    file = tmp_path / "schedule.json"
    with ranks(fork_server, training, tmp_path / "stop", "--step-s=0.03") as live:
        live.wait_joined()
        command(training, "set", "ddp", "lr=0.05", "--wait", "--why", "loss spike")
        command(training, "set", "ddp", "momentum=0.8", "clip=0.5", "--wait")
        command(training, "rollback", "ddp", "--wait")
        live.stop_file.touch()
        steered = live.end()
    assert len({event["steps"] for event in steered}) == 1
    command(training, "history", "ddp", "--export", str(file))
    steps, (_, _, (middle, _), (last, _)) = steered[0]["steps"], live.changes(0)

    replay = f"--replay={file}"
    with ranks(
        fork_server, training, tmp_path / "never", replay, f"--steps={steps}", namespace=f"{training.namespace}-1"
    ) as again:
        replayed = again.end()
        assert [again.changes(rank) for rank in (0, 1)] == [live.changes(rank) for rank in (0, 1)]
    assert len(hashes(steered, replayed)) == 1

    parts = (replay, f"--checkpoints={tmp_path / 'checkpoints'}")
    stopped_at, resumed = (middle + last) // 2, f"{training.namespace}-2"
    with ranks(fork_server, training, tmp_path / "never", *parts, f"--steps={stopped_at}", namespace=resumed) as first:
        assert hashes(first.end()).isdisjoint(hashes(steered))
    with ranks(fork_server, training, tmp_path / "never", *parts, f"--steps={steps}", namespace=resumed) as second:
        done = second.end()
    assert {event["start"] for event in done} == {stopped_at}
    assert hashes(done) == hashes(steered)


def test_a_run_that_was_killed_and_resumed_is_repeated_in_one_go(
    training: TrainingRun, tmp_path: Path, fork_server: ForkServer
) -> None:
    """Steps after the checkpoint that were lost are not repeated, nor are their values."""
    saving = (f"--checkpoints={tmp_path / 'checkpoints'}", "--save-every=10", "--step-s=0.03")
    with ranks(fork_server, training, tmp_path / "stop", *saving) as killed:
        killed.wait_joined()
        command(training, "set", "ddp", "lr=0.05", "--wait")
        changed_at = wait_for(lambda: len(killed.changes(0)) == 2 and killed.changes(0)[1][0], "the first change")
        wait_for(lambda: [e for e in killed.said("saved") if e["step"] > changed_at], "a checkpoint after the change")
        command(training, "set", "ddp", "momentum=0.5", "--wait")
        killed.kill()
    command(training, "set", "ddp", "lr=0.02", "momentum=0.8")
    with ranks(fork_server, training, tmp_path / "stop", *saving) as live:
        live.wait_joined()
        command(training, "set", "ddp", "clip=0.5", "--wait")
        live.stop_file.touch()
        steered = live.end()
    file = tmp_path / "schedule.json"
    command(training, "history", "ddp", "--export", str(file))
    start, steps = steered[0]["start"], steered[0]["steps"]
    assert start > changed_at
    told = Schedule.decode(file.read_text()).changes
    assert [change.step for change in told if change.step <= start][-1] == start

    again = (f"--replay={file}", f"--steps={steps}")
    with ranks(fork_server, training, tmp_path / "never", *again, namespace=f"{training.namespace}-1") as replay:
        assert hashes(replay.end()) == hashes(steered)
