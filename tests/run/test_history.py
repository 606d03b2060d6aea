"""etcd's history goes back under a run of real processes: the run writes back what its ranks hold, and goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from instep.testing import EtcdServer
from run.harness import TrainingRun, wait_for


def go_back(server: EtcdServer, backup: Path, how: str) -> None:
    """`how`: restored, grown past (other people's writes take its revision beyond what it was), or wiped."""
    before = server.status().revision
    server.kill()
    if how == "wiped":
        server.wipe()
        return
    server.restore(backup)
    if how == "grown past":
        while server.status().revision <= before + 5:
            server.etcdctl("put", "/other", "x")


def settled(training: TrainingRun) -> bool:
    epoch, agreed = training.key("state/epoch"), training.key("state/agreed")
    return bool(epoch and epoch["settled"] and agreed and agreed["digest"] == epoch["digest"])


@pytest.mark.parametrize(
    ("how", "agents_die"),
    [("restored", False), ("restored", True), ("grown past", False), ("wiped", False), ("wiped", True)],
)
def test_etcd_goes_back_and_no_value_does(fragile_training: TrainingRun, how: str, agents_die: bool) -> None:
    """Two nodes, two changes since the backup; one rank is replaced after it."""
    training, server = fragile_training, fragile_training.server
    assert isinstance(server, EtcdServer)
    first, second = training.start_all(2, nodes="ab")
    training.put("lr", "0.5")
    assert first.wait_config(lr=0.5) == second.wait_config(lr=0.5)
    backup = server.snapshot()
    for value in (0.01, 0.02):
        training.put("lr", str(value))
        gate = first.wait_config(lr=value)
        assert gate == second.wait_config(lr=value)
    pids = [training.agent_pid(node) for node in "ab"]
    go_back(server, backup, how)
    if agents_die:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: settled(training), "what the ranks hold is in etcd again")
    assert training.key("state/agreed")["values"]["lr"] == 0.02
    second.kill()
    second.process.wait()
    replaced = training.start(1, 2, f"--start={gate}", node="b")
    replaced.wait_config(lr=0.02)
    training.put("lr", "0.04")
    assert first.wait_config(lr=0.04) == replaced.wait_config(lr=0.04)
    assert [event["config"]["lr"] for event in first.said("config")][-4:] == [0.5, 0.01, 0.02, 0.04]
    assert [event["config"]["lr"] for event in replaced.said("config")] == [0.02, 0.04]
    training.stop(first, replaced)
