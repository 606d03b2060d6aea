"""The demo itself: real etcd, real torchrun, real training, on two ranks and few steps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.harness.processes import marked

from run.harness import wait_for

pytestmark = pytest.mark.torch
pytest.importorskip("torch")

TIMEOUT_S = 300.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: sockets lie in it. It is TMPDIR of the demo and of all its processes, and so names them."""
    with tempfile.TemporaryDirectory(prefix="d") as path:
        yield Path(path)


@contextlib.contextmanager
def demo_in(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "instep", "demo", "--ranks", "2", *arguments],
        env={**os.environ, "TMPDIR": str(folder), "INSTEP_NAMESPACE": "/of-somebody", "RANK": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        try:
            yield demo
        finally:
            demo.kill()


def processes_of(folder: Path) -> list[int]:
    return marked(f"TMPDIR={folder}")


def test_the_demo_proves_what_it_claims_and_leaves_nothing(folder: Path) -> None:
    with demo_in(folder, "--steps", "20", "--json") as demo:
        out, err = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 0, err
    found = json.loads(out)
    assert found["held"]
    assert [item["held"] for item in found["checks"]] == [True] * 13
    assert [change["receipt"]["applied"] for change in found["changes"]] == [2, 2, 2]
    assert not found["refused"]["written"]
    assert found["takeover"]["saved_by"] == 1 - found["takeover"]["killed_rank"]
    assert found["stop"]["checkpoint"] == found["steps"] - 1
    assert len({rank["sha256"] for rank in found["without"]}) == 2
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []


def test_sigterm_in_the_middle_of_training_ends_everything(folder: Path) -> None:
    with demo_in(folder, "--json") as demo:
        assert demo.stderr is not None
        said = []
        for line in demo.stderr:
            said.append(line)
            if "applied at step" in line:
                break
        assert len(processes_of(folder)) > 3, said
        demo.send_signal(signal.SIGTERM)
        out, _ = demo.communicate(timeout=TIMEOUT_S)
    assert (demo.returncode, out) == (128 + signal.SIGTERM, "")
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []


def test_a_killed_torchrun_ends_the_demo_with_an_error(folder: Path) -> None:
    with demo_in(folder) as demo:
        found = wait_for(lambda: [pid for pid in processes_of(folder) if _is_torchrun(pid)], "torchrun", TIMEOUT_S)
        os.kill(found[0], signal.SIGKILL)
        _, err = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 1
    assert "torchrun ended with status -9" in err
    assert processes_of(folder) == []


@pytest.mark.parametrize("arguments", [("--steps", "0"), ("--ranks", "1")])
def test_a_demo_that_could_show_nothing_is_refused_at_once(folder: Path, arguments: tuple[str, ...]) -> None:
    with demo_in(folder, *arguments) as demo:
        _, err = demo.communicate(timeout=TIMEOUT_S)
    assert demo.returncode == 2
    assert arguments[0] in err


def _is_torchrun(pid: int) -> bool:
    try:
        return b"torch.distributed.run" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
