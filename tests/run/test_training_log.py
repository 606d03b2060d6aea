"""What the training's own log shows at INFO about its start, its changes and the checkpoint that it resumed from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from chaos.harness.fork_server import ForkServer

from run.harness import TrainingRun

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SCRIPT = Path(__file__).with_name("scheduled_trainer.py")


def test_the_log_names_the_first_values_each_change_with_its_step_and_each_resume(
    training: TrainingRun, tmp_path: Path, fork_server: ForkServer
) -> None:
    """The schedule of the README's example continues where it was saved."""
    first = training.start(0, 1, str(tmp_path / "saved"), script=SCRIPT, fork_server=fork_server)
    first.wait_said("joined")
    training.put("lr", "0.02")
    step = first.wait_said("done")["step"]
    assert first.finish() == 0
    log = "".join(first.errors)
    assert "INFO all 1 ranks have joined run 'gpt-a' (view 1) with lr=0.01" in log
    assert "INFO the run has no checkpoint: it starts at step 0" in log
    applied = re.search(r"INFO change 1 applies from step (\d+) on all ranks: lr 0\.01 -> 0\.02", log)
    assert applied is not None
    assert int(applied[1]) == step
    assert "do not hold" not in log

    again = training.start(0, 1, str(tmp_path / "saved"), script=SCRIPT, fork_server=fork_server)
    joined = again.wait_said("joined")
    assert joined["start"] == joined["epoch"] == step + 1
    again.wait_said("done")
    assert again.finish() == 0
    log = "".join(again.errors)
    assert "with lr=0.02" in log
    assert re.search(rf"INFO the run resumes from checkpoint {step}-\d+: step {step + 1} is next", log)
