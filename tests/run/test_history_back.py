"""etcd's history goes back under a run of real processes: the run writes back what its ranks hold, and continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chaos.harness.processes import parent_of

from instep.testing import EtcdServer
from run.harness import Trainer, TrainingRun, wait_for
from run.saver_team import Team, Worker


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


def instep(training: TrainingRun, *arguments: str) -> str:
    command = [sys.executable, "-m", "instep", *arguments]
    environment = {**os.environ, **training.environment()}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout


@contextmanager
def watched_status(training: TrainingRun) -> Iterator[list[dict[str, Any]]]:
    """What `instep status --watch --json` prints, as it comes."""
    command = [sys.executable, "-m", "instep", "status", "gpt-a", "--watch", "--json"]
    environment = {**os.environ, **training.environment()}
    told: list[dict[str, Any]] = []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = process.stdout
        reader = threading.Thread(target=lambda: told.extend(map(json.loads, lines)), daemon=True)
        reader.start()
        try:
            yield told
            assert process.poll() is None
        finally:
            process.terminate()
            reader.join()


def is_settled(now: dict[str, Any]) -> bool:
    return bool(now["epoch"] and now["epoch"]["settled"])


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


def test_a_run_whose_etcd_was_wiped_ends_cleanly_on_sigterm(fragile_training: TrainingRun, tmp_path: Path) -> None:
    """The earlier change is kept, another one is made, and after one rank's SIGTERM all save, leave and exit with 0.
    Each node's log and the front ends explain what happened."""
    training, server = fragile_training, fragile_training.server
    assert isinstance(server, EtcdServer)
    trainers = training.start_all(4, f"--save-to={tmp_path}", nodes="ab")
    training.put("lr", "0.5")
    assert len({trainer.wait_config(lr=0.5) for trainer in trainers}) == 1
    with watched_status(training) as told:
        wait_for(lambda: told, "a status")
        go_back(server, tmp_path / "unused", "wiped")
        now = wait_for(lambda: next(filter(is_settled, told), None), "a status of an etcd that went back")
    assert (now["epoch"]["number"], now["epoch"]["problem"]) == (1, None)
    assert now["epoch"]["written_back"] == [training.key("state/agreed")["plan"]]
    instep(training, "set", "gpt-a", "lr=0.25", "--wait")
    assert len({trainer.wait_config(lr=0.25) for trainer in trainers}) == 1
    assert "etcd's history went back" in instep(training, "history", "gpt-a")
    for node in (trainers[:2], trainers[2:]):
        warned = wait_for(lambda node=node: warnings_of(node), "the warning in the log of one rank of each node")
        assert len(warned) == 1, warned
        assert "training continues with the agreed values; changes wait" in warned[0]
    trainers[3].kill(signal.SIGTERM)
    assert [trainer.finish() for trainer in trainers] == [0, 0, 0, 0]
    (saved,) = {trainer.said("asked to save")[0]["step"] for trainer in trainers}
    assert {trainer.said("stopped")[0]["step"] for trainer in trainers} == {saved + 1}
    assert training.key("checkpoints/latest")["step"] == saved


def warnings_of(node: list[Trainer]) -> list[str]:
    return [line for trainer in node for line in trainer.errors if "etcd's history went back" in line]


def test_saves_take_no_longer_after_etcd_was_wiped(fragile_training: TrainingRun, tmp_path: Path) -> None:
    """Earlier checkpoints are not in its records; that must not make the ranks wait for one another until a timeout."""
    training, server = fragile_training, fragile_training.server
    assert isinstance(server, EtcdServer)
    team = Team(training, tmp_path)
    try:
        ranks = team.join("ab")
        for step in (1, 2):
            save_together(ranks, step)
        go_back(server, tmp_path / "unused", "wiped")
        server.start()
        wait_for(lambda: settled(training), "what the ranks hold is in etcd again")
        took_s = [answer["took_s"] for step in (3, 4, 5) for answer in save_together(ranks, step)]
        assert max(took_s) < 5, took_s
    finally:
        team.close()


def save_together(ranks: list[Worker], step: int) -> list[dict[str, Any]]:
    for do, arguments in (("step", {"step": step}), ("save", {"step": step})):
        for rank in ranks:
            rank.tell(do, **arguments)
        answers = [rank.answer() for rank in ranks]
    assert [answer.get("error") for answer in answers] == [None] * len(ranks), answers
    return answers


def test_ranks_of_two_histories_stop_changes_until_all_are_started_again(fragile_training: TrainingRun) -> None:
    """A process that was frozen before etcd was emptied replaces one that was started after that and died."""
    training, server = fragile_training, fragile_training.server
    assert isinstance(server, EtcdServer)
    first, old = training.start_all(2, nodes="ab")
    training.put("lr", "0.02")
    assert first.wait_config(lr=0.02) == old.wait_config(lr=0.02)
    agent = training.agent_pid("b")
    frozen = [old.process.pid, parent_of(agent), agent]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    first.kill()
    first.finish()
    go_back(server, Path(), "wiped")
    begun, dies = training.start_all(2, nodes="ac")
    for value in (0.03, 0.04):
        training.put("lr", str(value))
        assert begun.wait_config(lr=value) == dies.wait_config(lr=value)
    dies.kill()
    dies.finish()
    wait_for(lambda: not training.keys("reports/members/1/"), "the rank that died to be gone")
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: (training.key("state/epoch") or {}).get("problem"), "the two histories to be noticed")
    assert "restart all ranks" in " ".join(instep(training, "status", "gpt-a").split())
    wait_for(lambda: any("neither follows from the other" in line for line in begun.errors), "the training to be told")
    for trainer in (begun, old):
        trainer.kill()
        trainer.finish()
    again = training.start_all(2, nodes="ab")
    training.put("lr", "0.05")
    assert again[0].wait_config(lr=0.05) == again[1].wait_config(lr=0.05)
    assert training.key("state/epoch")["settled"]
    training.stop(*again)
