"""SIGTERM on one rank: all ranks save at one step and leave; and what happens if they cannot."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from chaos.harness.processes import parent_of

from run.harness import Trainer, TrainingRun, wait_for
from run.saver_team import Team
from run.test_commands_live import order, paused_at, steps_said

TERM = signal.SIGTERM


def wait_trains(*trainers: Trainer) -> None:
    """A few steps were run: the first boundary has been passed by all."""
    for trainer in trainers:
        trainer.wait_said("config")


def test_sigterm_on_one_rank_ends_all_at_one_step_after_a_save(training: TrainingRun) -> None:
    trainers = training.start_all(4, nodes="ab")
    wait_trains(*trainers)
    trainers[3].kill(TERM)
    (saved,) = steps_said(trainers, "asked to save")
    assert steps_said(trainers, "stopped") == {saved + 1}
    assert [trainer.finish() for trainer in trainers] == [0, 0, 0, 0]
    assert trainers[0].said("stopped")[0]["reason"].startswith("stopped by rank 3 on ")
    assert trainers[0].said("stopped")[0]["reason"].endswith(": SIGTERM")
    assert any("rank 3 got SIGTERM" in line for line in trainers[3].errors)


def test_ranks_that_are_signalled_at_once_ask_once(training: TrainingRun) -> None:
    trainers = training.start_all(4, nodes="ab")
    wait_trains(*trainers)
    for trainer in trainers:
        trainer.kill(TERM)
    assert len(steps_said(trainers, "stopped")) == 1
    assert [trainer.finish() for trainer in trainers] == [0, 0, 0, 0]
    assert not training.keys("state/declined/")
    assert not training.keys("commands/")
    # A plan that arrives too late on a busy machine is aborted and repeated; a second request would be committed too.
    plans = range(1, training.key("state/agreed")["plan"] + 1)
    assert [training.key(f"state/plans/{n}/decision")["commit"] for n in plans].count(True) == 1


def test_ranks_of_the_staying_node_wait_for_torchrun_to_continue_without_the_other(training: TrainingRun) -> None:
    """Ranks that end by themselves would count as finished: torchrun would wait for the others and end the run."""
    world = {"TORCHELASTIC_RUN_ID": "gpt-a", "GROUP_WORLD_SIZE": "2"}
    going, *staying = [training.start(rank, 3, node="abb"[rank], environment=world) for rank in range(3)]
    wait_trains(going, *staying)
    going.kill(TERM)
    assert going.finish() == 0
    for trainer in staying:
        wait_for(lambda: any("waits 15 s at most for torchrun" in line for line in trainer.errors), "standing by")  # noqa: B023  # called at once
    assert [trainer.process.poll() for trainer in staying] == [None, None]
    for trainer in staying:
        trainer.kill(TERM)
    assert [trainer.finish() for trainer in staying] == [0, 0]


def test_a_paused_rank_is_notified_too(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    order(training, "pause")
    gate = paused_at(training)
    trainers[1].kill(TERM)
    assert steps_said(trainers, "asked to save") == {gate}
    assert [trainer.finish() for trainer in trainers] == [0, 0]


def test_the_notice_is_repeated_to_the_next_agent(training: TrainingRun) -> None:
    """The agent is stopped when the signal arrives, and dies before it has read the notice."""
    trainers = training.start_all(2)
    wait_trains(*trainers)
    agent = training.agent_pid()
    os.kill(agent, signal.SIGSTOP)
    trainers[0].kill(TERM)
    wait_for(lambda: any("rank 0 got SIGTERM" in line for line in trainers[0].errors), "notice")
    os.kill(agent, signal.SIGKILL)
    assert len(steps_said(trainers, "stopped")) == 1
    assert [trainer.finish() for trainer in trainers] == [0, 0]


def test_everything_on_a_node_may_receive_the_signal(training: TrainingRun) -> None:
    """Some schedulers signal every process of a node, including the agent and its parent."""
    trainers = training.start_all(4, nodes="ab")
    wait_trains(*trainers)
    agent = training.agent_pid("b")
    parent = parent_of(agent)
    for pid in (parent, agent, trainers[2].process.pid, trainers[3].process.pid):
        os.kill(pid, TERM)
    assert len(steps_said(trainers, "stopped")) == 1
    assert [trainer.finish() for trainer in trainers] == [0, 0, 0, 0]
    wait_for(lambda: not Path(f"/proc/{agent}").exists(), "the end of the agent, with its workers")
    assert f"agent {agent} ends" in training.agent_log("b")
    assert training.agent_log("b").count("starts with") == 1, "it was not replaced"


def test_a_second_signal_ends_the_process_now(training: TrainingRun) -> None:
    """If a step is too long for the run to agree at once."""
    trainers = training.start_all(2, "--step-s=20")
    wait_trains(*trainers)
    began = time.monotonic()

    def is_dead() -> bool:
        trainers[0].kill(TERM)  # signals that follow at once count as the same one
        return trainers[0].process.poll() is not None

    wait_for(is_dead, "the rank to end by the second signal")
    assert trainers[0].finish() == -TERM
    assert time.monotonic() - began > 1


def test_a_stop_from_before_a_restart_is_not_carried_out(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    wait_trains(*trainers)
    trainers[0].kill(TERM)
    assert [trainer.finish() for trainer in trainers] == [0, 0]
    again = training.start_all(2)
    training.put("lr", "0.05")
    for trainer in again:
        trainer.wait_config(lr=0.05)
    assert not again[0].said("stopped")
    again[1].kill(TERM)
    assert len(steps_said(again, "stopped")) == 1
    assert [trainer.finish() for trainer in again] == [0, 0]


def test_without_etcd_a_rank_gives_up_in_time_and_names_the_newest_checkpoint(fragile_training: TrainingRun) -> None:
    training = fragile_training
    training.extra_environment["INSTEP_GRACE_S"] = "4"
    trainers = training.start_all(2)
    wait_trains(*trainers)
    training.server.pause()
    told_at = time.monotonic()
    trainers[1].kill(TERM)
    error = trainers[1].wait_said("error")
    assert error["kind"] == "Preempted"
    assert "the newest committed checkpoint remains" in error["text"]
    assert trainers[1].finish() == 13
    assert time.monotonic() - told_at < 8, "the kill is expected after 4 s"
    training.server.resume()
    trainers[0].kill()


def test_without_etcd_a_paused_rank_gives_up_too(fragile_training: TrainingRun) -> None:
    training = fragile_training
    training.extra_environment["INSTEP_GRACE_S"] = "4"
    trainers = training.start_all(2)
    order(training, "pause")
    paused_at(training)
    training.server.pause()
    trainers[1].kill(TERM)
    assert trainers[1].wait_said("error")["kind"] == "Preempted"
    assert trainers[1].finish() == 13
    training.server.resume()
    trainers[0].kill()


def test_a_save_longer_than_the_grace_period_is_reported_before_a_signal(training: TrainingRun, tmp_path: Path) -> None:
    """By the rank that saves, once; the run is still asked to stop when the time has come."""
    training.extra_environment["INSTEP_GRACE_S"] = "2"
    trainers = training.start_all(2, f"--save-to={tmp_path}", "--save-s=1.2")
    wait_trains(*trainers)
    order(training, "checkpoint")
    said = wait_for(
        lambda: [line for trainer in trainers for line in trainer.errors if "a save takes 1.2 s" in line], "a warning"
    )
    assert "there are 2 s from SIGTERM to SIGKILL" in said[0]
    assert "INSTEP_GRACE_S to 4 or more" in said[0]
    trainers[0].kill(TERM)
    assert [trainer.finish() for trainer in trainers] == [0, 0]
    assert training.key("checkpoints/latest")["step"] == trainers[0].said("asked to save")[-1]["step"]


def test_a_rank_that_waits_before_the_first_step_gives_up_too(training: TrainingRun, tmp_path: Path) -> None:
    """Another rank does not arrive to agree on a checkpoint."""
    training.extra_environment["INSTEP_GRACE_S"] = "3"
    with contextlib.closing(Team(training, tmp_path)) as team:
        (first,) = team.join("a")
        first.ask("step", step=0)
        leader, _ = team.leader(first)
        assert leader.ask("save", step=0)["slot"]
        first.ask("close")
        first.close()
        waits, _ = team.join("ab")
        waits.tell("resume")
        waits.kill(TERM)
        answer = waits.answer()
    assert (answer["error"], answer["exit_code"]) == ("Preempted", 13)
    assert "has not begun its first step" in answer["text"]
    assert answer["took_s"] < 3


def test_a_signal_after_the_last_step_ends_the_process_once_it_has_left(training: TrainingRun, tmp_path: Path) -> None:
    with contextlib.closing(Team(training, tmp_path)) as team:
        (worker,) = team.join("a")
        worker.ask("step", step=0)
        worker.kill(TERM)
        worker.ask("has", step=0)
        assert worker.process.poll() is None
        worker.tell("close")
        assert worker.process.wait(30) == -TERM
        assert training.keys("reports/left/"), "it has said goodbye"


def test_after_a_run_was_left_the_signal_has_its_former_effect(training: TrainingRun) -> None:
    trainer = training.start(0, 1, "--steps=5", "--linger-s=30")
    trainer.wait_said("left")
    trainer.kill(TERM)
    assert trainer.finish() == -TERM


def test_survivors_signalled_after_a_death_do_not_wait_for_an_impossible_agreement(
    training: TrainingRun,
) -> None:
    """As when torchrun ends the other ranks in order to restart all: one on the node of the dead rank, one
    elsewhere."""
    trainers = [training.start(rank, 3, node="aab"[rank]) for rank in range(3)]
    wait_trains(*trainers)
    trainers[1].kill()
    trainers[1].finish()
    told_at = time.monotonic()
    for trainer in (trainers[0], trainers[2]):
        trainer.kill(TERM)
    for trainer in (trainers[0], trainers[2]):
        assert trainer.wait_said("error")["kind"] == "Preempted"
    assert time.monotonic() - told_at < 15, "without the agents' word it is 29 s"
    assert any("without rank 1, which is gone" in line for line in trainers[0].errors)
