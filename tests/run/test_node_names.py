"""Machines made from one image, and other nodes that happen to have the same name: each is its own node."""

from __future__ import annotations

import json
import shutil
import signal

from run.harness import TrainingRun, assert_in_step


def test_nodes_whose_folders_are_copies_of_one_folder_agree_on_a_change(training: TrainingRun) -> None:
    """The run was tried on the machine from which the image was made, and the agent's folder is in the image."""
    trial = training.start(0, 1, node="image")
    trial.wait_said("joined")
    for name in "ab":
        shutil.copytree(training.node("image"), training.node("image").with_name(name), ignore=_no_sockets)
    trial.kill(signal.SIGKILL)
    trial.finish()
    _agree(training)
    assert "takes another name" not in training.agent_log("a") + training.agent_log("b")


def test_of_two_nodes_with_one_name_one_takes_another_before_its_ranks_join(training: TrainingRun) -> None:
    for node in "ab":
        folder = training.folder_of(node)
        folder.node.write_text(json.dumps({"name": "twin", "claim": node, "place": folder.place()}))
    _agree(training)
    logs = [training.agent_log(node) for node in "ab"]
    assert sum("has the name twin too: this node takes another name" in log for log in logs) == 1


def _agree(training: TrainingRun) -> None:
    trainers = training.start_all(2, nodes="ab")
    names = [json.loads(training.folder_of(node).node.read_text())["name"] for node in "ab"]
    assert names[0] != names[1]
    assert training.key("state/view")["nodes"].keys() == set(names)
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    training.stop(*trainers)
    assert_in_step(*trainers)


def _no_sockets(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name.endswith(".sock")}
