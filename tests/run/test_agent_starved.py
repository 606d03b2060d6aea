"""A node on which the agent finds no space, no descriptors or no folder: the reason is reported at once."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from run.harness import TrainingRun

FULL = "/dev/full"
"""Each write to it fails as on a full disk."""


def test_with_a_disk_too_full_for_a_log_a_run_starts_and_gets_changes(training: TrainingRun) -> None:
    folder = training.folder_of()
    folder.log.symlink_to(FULL)
    folder.persisted_workers.with_suffix(".part").symlink_to(FULL)
    (trainer,) = training.start_all(1)
    training.put("lr", "0.2")
    trainer.wait_config(lr=0.2)
    training.stop()


def test_an_agent_that_cannot_listen_reports_why_at_once_without_a_log(training: TrainingRun) -> None:
    folder = training.folder_of()
    folder.log.symlink_to(FULL)
    folder.socket.mkdir()
    trainers = [training.start(rank, 2, "--timeout-s=60") for rank in range(2)]
    for trainer in trainers:
        error = trainer.wait_said("error", timeout_s=20)
        assert error["kind"] == "AgentError"
        assert "its agent cannot serve: Is a directory" in error["text"]
        assert "INSTEP_RUNTIME_DIR" in error["text"]


JOINS = """
import resource, sys, instep
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
try:
    instep.join("few", timeout_s=8)
except instep.InstepError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def start(training: TrainingRun, limit: int, rank: int, world_size: int) -> subprocess.Popen[str]:
    place = {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    return subprocess.Popen(
        [sys.executable, "-c", JOINS, str(limit)],
        env={**os.environ, **training.environment(), **place},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_with_too_few_descriptors_each_rank_gets_that_reason(training: TrainingRun) -> None:
    """The first one that the agent cannot serve at once, the others when their wait ends."""
    ranks = [start(training, 26, rank, 6) for rank in range(6)]
    for rank in ranks:
        _, said = rank.communicate(timeout=60)
        assert rank.returncode == 1
        assert "raise the limit of open files of a process (ulimit -n), which is 26" in said
    assert len(training.agent_log(run="few").splitlines()) < 60


def test_a_limit_too_low_for_any_agent_is_reported_before_grpc_aborts(training: TrainingRun) -> None:
    rank = start(training, 14, 0, 1)
    _, said = rank.communicate(timeout=30)
    assert "so the run cannot be joined: its agent cannot serve: Too many open files" in said


def test_an_agent_takes_the_descriptors_that_the_system_allows(training: TrainingRun) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    training.start_all(1)
    limits = Path(f"/proc/{training.agent_pid()}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
    assert int(line.split()[3]) == max(soft, min(hard, 65536))
    training.stop()


def test_for_a_user_without_a_home_the_error_names_the_variable(tmp_path: Path) -> None:
    """OpenShift gives a pod a user id that no passwd entry names, and no HOME."""
    code = (
        "import os, pwd, sys\n"
        "def nobody(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "sys.argv[1:] = ['local', '--detach']\n"
        "from instep.cli import main; main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_DATA_HOME")}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("instep: user")
    assert "set XDG_DATA_HOME to a folder for the data of the local etcd" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_local_etcd_whose_folder_is_not_writable_is_an_error_with_the_reason(tmp_path: Path) -> None:
    home = tmp_path / "instep"
    home.mkdir()
    (home / "local.lock").mkdir()
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", "instep", "local", "--detach"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "cannot keep its data" in ended.stderr
    assert "set XDG_DATA_HOME to another folder" in ended.stderr
