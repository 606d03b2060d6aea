"""SIGTERM for whole process groups, as torchrun sends it, while DataLoader workers are running."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from run.harness import TrainingRun, wait_for
from run.test_commands_live import steps_said

pytest.importorskip("torch")

SCRIPT = Path(__file__).with_name("loader_trainer.py")


@pytest.mark.parametrize(
    ("context", "more"),
    [
        ("fork", ()),
        ("fork", ("--persistent",)),
        pytest.param("spawn", ("--persistent",), marks=pytest.mark.long),
    ],
)
def test_loaders_survive_the_signal_and_end_with_their_trainer(
    training: TrainingRun, tmp_path: Path, context: str, more: tuple[str, ...]
) -> None:
    """All ranks save at one step, leave with exit code 0, and no worker process is left behind."""
    arguments = (f"--folder={tmp_path}", f"--context={context}", *more)
    trainers = training.start_all(2, *arguments, script=SCRIPT)
    workers = [pid for trainer in trainers for pid in trainer.wait_said("trains")["workers"]]
    assert len(workers) == 4
    for trainer in trainers:
        os.killpg(trainer.process.pid, signal.SIGTERM)
    (saved,) = steps_said(trainers, "saved")
    assert steps_said(trainers, "stopped") == {saved + 1}
    assert [trainer.finish() for trainer in trainers] == [0, 0], [trainer.errors for trainer in trainers]
    assert not [line for trainer in trainers for line in trainer.errors if "Traceback" in line]
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the end of the workers")
    assert training.key("checkpoints/latest")["step"] == saved


def test_loaders_of_a_run_joined_without_protection_die_of_the_signal(training: TrainingRun, tmp_path: Path) -> None:
    (trainer,) = training.start_all(1, f"--folder={tmp_path}", "--unprotected", script=SCRIPT)
    for pid in trainer.wait_said("trains")["workers"]:
        os.kill(pid, signal.SIGTERM)
    assert trainer.finish() != 0
    assert any("DataLoader worker" in line for line in trainer.errors), trainer.errors


def test_loaders_do_not_outlive_a_trainer_that_is_killed(training: TrainingRun, tmp_path: Path) -> None:
    """Ignoring the signal does not make them orphans."""
    (trainer,) = training.start_all(1, f"--folder={tmp_path}", script=SCRIPT)
    workers = trainer.wait_said("trains")["workers"]
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    os.kill(trainer.process.pid, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the end of the workers")
    trainer.finish()
