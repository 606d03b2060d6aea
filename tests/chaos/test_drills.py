"""One round of each drill without torch: real ranks and a real etcd. `make drills` runs all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120.0


def hold_one_round(name: str, *, seed: int) -> None:
    command = [sys.executable, "-m", "chaos", "drill", name, "--rounds=1", f"--seed={seed}", "--no-torch"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert f"{name}: held, 1 of 1 rounds" in done.stdout


def test_a_rank_that_gets_sigterm_makes_the_run_save_and_stop() -> None:
    hold_one_round("sigterm", seed=1)


def test_all_ranks_resume_from_the_newest_checkpoint_after_a_kill_during_a_save() -> None:
    hold_one_round("midsave", seed=3)


def test_a_saver_frozen_beyond_its_lease_commits_nothing() -> None:
    hold_one_round("frozensaver", seed=2)
