"""The process that starts an agent again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
    if count < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return 0

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
lock = folder.claim()
assert lock is not None
sys.exit(guard(folder, lock, serve))
"""


def test_an_agent_is_started_again_until_it_ends_by_itself(tmp_path: Path) -> None:
    """Also where the trainer ignores the end of its children: that is handed on from process to process."""
    folder = tmp_path / "private" / "run"
    folder.parent.mkdir(mode=0o700)
    subprocess.run([sys.executable, "-c", GUARDED, str(folder)], check=True, timeout=60)
    assert (folder / "starts").read_text() == "..."
