"""The process that starts an agent again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GUARDED = """
import os, signal, sys
from pathlib import Path
from instep.agent.guardian import guard
from instep.runtime import RuntimeFolder

folder = RuntimeFolder(Path(sys.argv[1]))
starts = folder.path / "starts"

def serve() -> int:
    count = starts.stat().st_size if starts.exists() else 0
    with starts.open("a") as file:
        file.write(".")
    if count < 2 and sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return int(count < 2)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
lock = folder.claim()
assert lock is not None
sys.exit(guard(folder, lock, serve))
"""


@pytest.mark.parametrize("death", ["killed", "failed"])
def test_an_agent_is_started_again_until_it_ends_well(tmp_path: Path, death: str) -> None:
    """Also where the trainer ignores the end of its children: that is handed on from process to process."""
    folder = tmp_path / "private" / "run"
    folder.parent.mkdir(mode=0o700)
    subprocess.run([sys.executable, "-c", GUARDED, str(folder), death], check=True, timeout=60)
    assert (folder / "starts").read_text() == "..."
