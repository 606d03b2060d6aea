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
    document = folder / "report.json"
    command = [sys.executable, "-m", "chaos", f"--seed={SEED}", f"--duration-s={duration_s}", f"--json={document}"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    found = json.loads(document.read_text())
    assert found["passed"]
    assert found["counts"]["changes committed"] >= changes
    assert found["counts"]["workers killed"] >= kills
    assert found["counts"]["commands asked for"] >= commands
    assert not list(folder.glob("instep-chaos-*")), "a session that held leaves nothing behind"
