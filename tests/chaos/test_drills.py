"""The drills: real ranks and a real etcd, one round of each here and all of them in `make drills`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120.0
LONG_TIMEOUT_S = 1800.0


def drill(name: str, *options: str, rounds: int, seed: int, timeout_s: float = TIMEOUT_S) -> None:
    command = [sys.executable, "-m", "chaos", "drill", name, f"--rounds={rounds}", f"--seed={seed}", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert f"{name}: held, {rounds} of {rounds} rounds" in done.stdout


def test_a_rank_that_gets_sigterm_takes_the_run_to_a_checkpoint() -> None:
    drill("sigterm", "--no-torch", rounds=1, seed=1)


def test_after_a_kill_in_mid_save_all_ranks_resume_from_the_newest_checkpoint() -> None:
    drill("midsave", "--no-torch", rounds=1, seed=3)


def test_a_saver_stopped_beyond_its_lease_commits_nothing() -> None:
    drill("frozensaver", "--no-torch", rounds=1, seed=2)


@pytest.mark.long
def test_torchrun_may_get_sigterm_at_any_moment() -> None:
    pytest.importorskip("torch")
    drill("torchrun", rounds=20, seed=4, timeout_s=LONG_TIMEOUT_S)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["--no-torch", "--torch"])
@pytest.mark.parametrize(("name", "rounds"), [("sigterm", 100), ("midsave", 100), ("frozensaver", 20)])
def test_every_round_of_a_drill_holds(name: str, rounds: int, layout: str) -> None:
    if layout == "--torch":
        pytest.importorskip("torch")
    drill(name, layout, rounds=rounds, seed=4, timeout_s=LONG_TIMEOUT_S)
