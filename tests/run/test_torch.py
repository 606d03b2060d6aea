"""The real thing: torchrun, DistributedDataParallel on gloo, forked DataLoader workers, a bound optimizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from run.harness import SOURCE, Event, TrainingRun, wait_for

pytest.importorskip("torch")


def test_ddp_ranks_with_forked_loaders_stay_bit_identical_under_live_changes(
    training: TrainingRun, tmp_path: Path
) -> None:
    stop = tmp_path / "stop"
    script = Path(__file__).with_name("ddp_trainer.py")
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(stop)],
        env={**os.environ, **training.environment(), "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    events: list[Event] = []
    errors: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            events.append(json.loads(line))

    reader = threading.Thread(target=read, daemon=True)
    complaints = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    complaints.start()
    try:
        for lr in (0.05, 0.02):
            wait_for(lambda: len([e for e in events if e["event"] == "joined"]) == 2 or process.poll(), "the ranks")
            assert process.poll() is None, errors
            training.server.etcdctl("put", f"{training.namespace}/ddp/config/lr", str(lr))
            applied = wait_for(
                lambda lr=lr: len(a := [e for e in events if e["event"] == "config" and e["lr"] == lr]) == 2 and a,
                f"lr {lr} on both ranks",
            )
            assert len({event["step"] for event in applied}) == 1
        stop.touch()
        assert process.wait(60) == 0, errors
        reader.join()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
        complaints.join()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    done = [event for event in events if event["event"] == "done"]
    assert len(done) == 2
    assert len({event["hash"] for event in done}) == 1
    for event in done:
        assert event["base_lr"] == pytest.approx(0.02)
        assert event["changes"] == 2
