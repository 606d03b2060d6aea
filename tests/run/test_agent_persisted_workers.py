"""The agent and one of its ranks die together while another rank waits for that one inside a step."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path

from run.harness import Trainer, TrainingRun, assert_in_step, wait_for


def test_a_rank_that_died_with_its_agent_is_replaced_while_the_other_waits_for_it(
    training: TrainingRun, tmp_path: Path
) -> None:
    """The other rank passes no boundary until the new one has joined, as in a collective."""
    barrier = tmp_path / "barrier"
    alone = training.start(0, 2, f"--barrier={barrier}")
    victim = training.start(1, 2)
    for trainer in (alone, victim):
        trainer.wait_said("joined")
    training.put("lr", "0.01")
    for trainer in (alone, victim):
        trainer.wait_config(lr=0.01)
    _both_are_replaced(training, barrier, alone, victim, node="a")


def test_an_agent_killed_while_its_rank_waits_for_another_node_is_replaced_at_once(
    training: TrainingRun, tmp_path: Path
) -> None:
    """No rank of the agent's node passes a boundary, and the rank that they wait for needs that node to be
    registered."""
    barrier = tmp_path / "barrier"
    alone = training.start(0, 2, f"--barrier={barrier}", node="a")
    victim = training.start(1, 2, node="b")
    for trainer in (alone, victim):
        trainer.wait_said("joined")
    _both_are_replaced(training, barrier, alone, victim, node="b")


def _both_are_replaced(training: TrainingRun, barrier: Path, alone: Trainer, victim: Trainer, *, node: str) -> None:
    """Kills the agent of node a and the victim, on `node`, while the other rank waits; then training continues."""
    barrier.touch()
    alone.wait_said("waiting")
    agent = training.agent_pid("a")
    os.kill(agent, signal.SIGKILL)
    victim.kill()
    victim.finish()
    again = training.start(1, 2, node=node)
    assert again.wait_said("joined")["view"] == 2
    assert training.agent_pid("a") != agent
    barrier.unlink()
    training.put("lr", "0.02")
    assert len({trainer.wait_config(lr=0.02) for trainer in (alone, again)}) == 1
    training.stop(alone, again)
    assert_in_step(alone, again)


def test_an_agent_whose_folder_was_cleaned_away_keeps_its_name(training: TrainingRun, tmp_path: Path) -> None:
    """No rank passes a boundary, so the agent's parent starts the next agent: the view names that node."""
    barrier = tmp_path / "barrier"
    trainers = [training.start(rank, 2, f"--barrier={barrier}") for rank in range(2)]
    for trainer in trainers:
        trainer.wait_said("joined")
    barrier.touch()
    for trainer in trainers:
        trainer.wait_said("waiting")
    agent = training.agent_pid()
    shutil.rmtree(training.node("a"))
    os.kill(agent, signal.SIGKILL)
    wait_for(training.folder_of().socket.exists, "the next agent")
    barrier.unlink()
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    training.stop(*trainers)


def test_an_agent_and_its_supervisor_hold_nothing_open_of_the_trainer(training: TrainingRun) -> None:
    trainer = training.start(0, 1)
    trainer.wait_said("joined")
    for pid in wait_for(lambda: len(found := _processes_of(training)) == 2 and found, "the launcher to end"):
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    training.stop(trainer)


def test_an_agent_that_has_ended_by_itself_is_not_started_again(training: TrainingRun) -> None:
    trainer = training.start(0, 1)
    trainer.wait_said("joined")
    training.stop(trainer)
    wait_for(lambda: not _processes_of(training), "the agent and its supervisor to end")


def test_an_agent_whose_supervisor_was_killed_continues(training: TrainingRun) -> None:
    trainer = training.start(0, 1)
    trainer.wait_said("joined")
    agent = training.agent_pid()
    (supervisor,) = (pid for pid in _processes_of(training) if pid != agent)
    os.kill(supervisor, signal.SIGKILL)
    training.put("lr", "0.01")
    trainer.wait_config(lr=0.01)
    os.kill(agent, signal.SIGKILL)
    training.put("lr", "0.02")
    trainer.wait_config(lr=0.02)
    training.stop(trainer)


def _processes_of(training: TrainingRun) -> list[int]:
    folder = bytes(training.folder_of().path)
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and folder in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def test_a_worker_that_died_before_the_next_agent_started_is_not_registered(training: TrainingRun) -> None:
    trainers = training.start_all(3)
    os.kill(training.agent_pid(), signal.SIGSTOP)
    trainers[2].kill()
    trainers[2].finish()
    os.kill(training.agent_pid(), signal.SIGKILL)
    wait_for(lambda: len(training.keys("reports/members/")) == 2, "the two that live to be registered alone")
    again = training.start(2, 3)
    again.wait_said("joined")
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in (*trainers[:2], again)}) == 1
    training.stop(*trainers[:2], again)


def test_a_restarted_rank_replaces_its_former_process_that_still_lives(training: TrainingRun) -> None:
    """The former process hangs, and its agent is new: all that is known of it is its entry in the persisted workers."""
    trainers = training.start_all(2)
    trainers[1].kill(signal.SIGSTOP)
    os.kill(training.agent_pid(), signal.SIGKILL)
    wait_for(lambda: "waiting for it to connect" in training.agent_log(), "the next agent to know of it")
    again = training.start(1, 2)
    assert again.wait_said("joined")["view"] == 2
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in (trainers[0], again)}) == 1
    trainers[1].kill(signal.SIGCONT)
    assert trainers[1].wait_said("error")["kind"] == "Evicted"
    training.stop(trainers[0], again)
    assert_in_step(trainers[0], again)
