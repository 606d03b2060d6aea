"""Nodes of one run with different versions of Instep installed."""

from __future__ import annotations

import shutil
from pathlib import Path

from cli.command import instep
from instep.version import VERSION
from instep.wire import PROTOCOL
from run.harness import SOURCE, TrainingRun, wait_for

OTHER = "99.1.0rc1"


def test_nodes_with_different_versions_are_named_in_the_log_and_in_the_status(
    training: TrainingRun, short_folder: Path
) -> None:
    source = short_folder / "src"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    version = source / "instep" / "version.py"
    version.write_text(version.read_text().replace(VERSION, OTHER))
    first = training.start(0, 2, node="a")
    training.start(1, 2, node="b", environment={"PYTHONPATH": str(source)}).wait_said("joined")
    first.wait_said("joined")
    wait_for(lambda: any(OTHER in line and VERSION in line for line in first.errors), "the warning in training's log")
    wait_for(lambda: f"different versions of Instep ({VERSION}, {OTHER})" in training.agent_log("a"), "the agent's log")
    status = instep("status", "gpt-a", "--json", env=training.environment()).json
    assert status["versions"] == {VERSION: "0", OTHER: "1"}
    assert "install one version of Instep" in instep("status", "gpt-a", env=training.environment()).out
    training.stop()


def test_a_worker_that_meets_an_agent_of_another_protocol_ends_with_what_to_do(
    training: TrainingRun, short_folder: Path
) -> None:
    source = short_folder / "src"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))
    protocol = source / "instep" / "wire" / "__init__.py"
    protocol.write_text(protocol.read_text().replace(f"PROTOCOL = {PROTOCOL}", f"PROTOCOL = {PROTOCOL + 1}"))
    first = training.start(0, 2, node="a")
    wait_for(lambda: list(training.node("a").rglob("agent.sock")), "an agent")
    newer = training.start(1, 2, node="a", environment={"PYTHONPATH": str(source)})
    error = newer.wait_said("error")
    assert error["kind"] == "AgentError"
    assert "end the run's processes on this node" in error["text"]
    first.kill()


def test_a_run_of_one_version_shows_no_versions(training: TrainingRun) -> None:
    trainers = training.start_all(2, nodes="ab")
    status = instep("status", "gpt-a", "--json", env=training.environment()).json
    assert status["versions"] == {VERSION: "0-1"}
    assert "versions" not in instep("status", "gpt-a", env=training.environment()).out
    training.stop(*trainers)
    assert not [line for trainer in trainers for line in trainer.errors if "version" in line]
