"""The process that restarts an agent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from parts import incarnation

from instep.agent.handover import note_start
from instep.runtime import RuntimeFolder

GUARDED = """
import os, signal, sys
from pathlib import Path
from instep.agent.supervisor import supervise
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
sys.exit(supervise(folder, lock, serve))
"""


@pytest.mark.parametrize("death", ["killed", "failed"])
def test_an_agent_is_started_again_until_it_ends_well(tmp_path: Path, death: str) -> None:
    """Also if the trainer ignores the end of its children, a setting that child processes inherit."""
    folder = tmp_path / "private" / "run"
    folder.parent.mkdir(mode=0o700)
    subprocess.run([sys.executable, "-c", GUARDED, str(folder), death], check=True, timeout=60)
    assert (folder / "starts").read_text() == "..."


def test_the_supervisor_passes_the_end_of_a_killed_agent_to_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "run"
    folder.parent.mkdir(mode=0o700)
    subprocess.run([sys.executable, "-c", GUARDED, str(folder), "killed"], check=True, timeout=60)
    former = note_start(RuntimeFolder(folder), 7)
    assert former is not None
    assert former.endswith("was killed by signal 9 (SIGKILL)")
    assert (
        note_start(RuntimeFolder(folder), 8)
        == "agent 7 was killed together with its supervisor, or its machine stopped"
    )


REFUSED = """
import os, sys
from pathlib import Path
from instep.agent import service
from instep.agent.name import NodeName
from instep.agent.persisted_workers import _started
from instep.protocol.records import Member
from instep.runtime import RuntimeFolder
from instep.settings import Settings
import json

folder = RuntimeFolder(Path(sys.argv[1]))
if sys.argv[2] == "needed":
    pid = os.getpid()
    who = {"rank": 0, "world_size": 1, "incarnation": sys.argv[3], "node": "a", "host": "h", "pid": pid}
    member = Member(**who, schema_digest="d", view=1)
    entry = {"pid": pid, "started": _started(pid), "member": json.loads(member.encode()), "schema": None}
    folder.persisted_workers.write_text(json.dumps({"place": folder.place(), "workers": [entry]}) + "\\n")
service.FIRST_WORKER_S = 0.1
settings = Settings(endpoints=("https://127.0.0.1:1",), cacert="/no/such/file")
sys.exit(service.serve(str(folder.path), "run", settings.to_json(), NodeName("a", "c")))
"""


@pytest.mark.parametrize(("who", "code"), [("needed", 1), ("nobody", 0)])
def test_an_agent_that_cannot_work_is_started_again_while_a_worker_trains(tmp_path: Path, who: str, code: int) -> None:
    """An end with exit code 0 stops the supervisor."""
    folder = tmp_path / "private" / "run"
    folder.parent.mkdir(mode=0o700)
    done = subprocess.run([sys.executable, "-c", REFUSED, str(folder), who, incarnation(1)], timeout=60, check=False)
    assert done.returncode == code
    former = note_start(RuntimeFolder(folder), 7)
    assert former is not None
    assert "/no/such/file" in former
