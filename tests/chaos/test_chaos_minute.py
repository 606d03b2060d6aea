"""The whole of chaos, for half a minute or a whole one: real agents and a real cluster, broken at random, and every
checker."""

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
    """A short path: sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="ins-", dir="/tmp") as path:
        yield Path(path)


@pytest.mark.parametrize(
    ("duration_s", "changes", "kills", "commands"), [(25, 1, 1, 0), pytest.param(60, 6, 3, 2, marks=pytest.mark.long)]
)
def test_a_minute_of_chaos_breaks_no_promise(
    folder: Path, duration_s: int, changes: int, kills: int, commands: int
) -> None:
    """No step with two configs, no change or command lost, one leader by token, true watches and locks, no hang.

    At least so much must have happened, on a busy machine too.
    """
    found = report_of(folder, f"--duration-s={duration_s}")
    assert found["counts"]["changes committed"] >= changes
    assert found["counts"]["workers killed"] >= kills
    assert found["counts"]["commands asked for"] >= commands
    assert not list(folder.glob("instep-chaos-*")), "a session that held leaves nothing behind"


@pytest.mark.long
def test_a_history_that_goes_back_again_and_again_breaks_no_promise(folder: Path) -> None:
    """No step with two configs, no checkpoint lost, and changes are agreed on after each time."""
    found = report_of(folder, "--duration-s=40", "--only=history")
    assert found["counts"]["rounds in which the history went back"] >= 1


def report_of(folder: Path, *options: str) -> dict[str, Any]:
    """Of a session that held."""
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
