"""Half a minute of `make chaos`: real agents and a real cluster under random faults, and every checker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = 1
TIMEOUT_S = 240.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ins-", dir="/tmp") as path:
        yield Path(path)


def test_half_a_minute_of_chaos_breaks_no_promise(folder: Path) -> None:
    """No step with two configs, no change or command lost, one leader by token, true watches and locks, no hang."""
    found = passed_report(folder, "--duration-s=25")
    assert found["counts"]["changes committed"] >= 1
    assert found["counts"]["workers killed"] >= 1
    assert not list(folder.glob("instep-chaos-*")), "a session that passed removes its folder"


def passed_report(folder: Path, *options: str) -> dict[str, Any]:
    """The report of a session that passed."""
    document = folder / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "chaos", f"--seed={SEED}", f"--json={document}", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    found: dict[str, Any] = json.loads(document.read_text())
    assert found["passed"]
    return found
