"""An agent that cannot work, folders that vanish, invalid records: training continues."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from instep.testing import EtcdServer
from run.harness import TrainingRun, assert_in_step, open_plan, wait_for


@pytest.fixture
def guarded(short_folder: Path, namespace: str) -> Iterator[TrainingRun]:
    with EtcdServer(auth="ann:secret") as server:
        run = TrainingRun(server, short_folder, namespace=namespace)
        yield run
        run.close()


def test_an_agent_that_can_no_longer_read_its_password_ends_no_training(guarded: TrainingRun, tmp_path: Path) -> None:
    password = tmp_path / "password"
    shutil.copy(guarded.server.environment()["INSTEP_PASSWORD_FILE"], password)
    environment = {"INSTEP_PASSWORD_FILE": str(password)}
    trainers = [guarded.start(rank, 2, environment=environment) for rank in range(2)]
    for trainer in trainers:
        trainer.wait_said("joined")
    kept = password.read_text()
    password.unlink()
    os.kill(guarded.agent_pid(), signal.SIGKILL)
    wait_for(lambda: any("training continues" in line for line in trainers[0].errors), "the rank to say so")
    password.write_text(kept)
    password.chmod(0o600)
    guarded.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    guarded.stop()
    assert_in_step(*trainers)


def test_a_runtime_folder_that_was_cleaned_away_costs_nothing(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    agent = training.agent_pid()
    shutil.rmtree(training.node("a"))
    os.kill(agent, signal.SIGKILL)
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    for item in training.stop():
        assert item["longest_boundary_s"] < 3
    assert_in_step(*trainers)


def test_a_rank_that_leaves_while_its_agent_is_away_is_known_to_have_left(
    training: TrainingRun, tmp_path: Path
) -> None:
    end = tmp_path / "end"
    leaver = training.start(0, 2, f"--stop-file={end}", node="a")
    other = training.start(1, 2, node="b")
    leaver.wait_said("joined")
    os.kill(training.agent_pid("a"), signal.SIGKILL)
    end.touch()
    assert leaver.finish() == 0
    training.put("lr", "0.01")
    other.wait_config(lr=0.01)
    training.stop(other)


def test_values_that_are_too_large_together_are_rejected_and_the_run_starts_again(training: TrainingRun) -> None:
    trainers = training.start_all(2, "--schema=none")
    large = "x" * 60_000
    training.put_together(**dict.fromkeys(("v0", "v1", "v2", "v3"), large))
    for trainer in trainers:
        trainer.wait_config(v3=large)
    for name in ("v4", "v5"):
        training.put(name, json.dumps(large))
    wait_for(lambda: len(training.keys("state/rejected/")) == 2, "the ones past the bound to be rejected")
    training.put("lr", "1")
    assert len({trainer.wait_config(lr=1) for trainer in trainers}) == 1
    training.stop()
    again = training.start_all(2, "--schema=none")
    assert again[0].said("joined")[0]["config"]["lr"] == 1
    training.stop(*again)


def test_text_that_is_not_unicode_and_invalid_names_stop_no_agent(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    agent = training.agent_pid()
    training.put("name", '"\\ud800"')
    training.put("a name", "1")
    training.put("deep/er", "1")
    assert "lone surrogate" in wait_for(lambda: training.key("state/rejected/name"), "the rejection")["reason"]
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    assert training.agent_pid() == agent
    training.stop()
    again = training.start_all(2)
    training.stop(*again)


STRAY_RECORDS = [
    ("reports/members/0/x", '{"rank":0,"world_size":2,"incarnation":"toolong","node":"x","host":"h","pid":1}'),
    ("reports/members/1/zzzzz", "garbage"),
    ("reports/acks/1/nobody", "garbage"),
    ("reports/left/nobody", '{"view":1,"ranks":[0,1],"last_step":5}'),
    ("reports/receipts/1/nobody", "[]"),
    ("changes/zzz", "[]"),
    ("state/rejected/lr", "garbage"),
    ("state/forming", "garbage"),
    ("state/leader", "garbage"),
    ("election/0", "garbage"),
]


def test_an_invalid_record_stops_no_agent(training: TrainingRun) -> None:
    """One after the other; after each of them a change is agreed on."""
    trainers = training.start_all(2)
    for number, (path, text) in enumerate(STRAY_RECORDS, start=1):
        training.server.etcdctl("put", "--", f"{training.namespace}/gpt-a/{path}", text)
        training.put("lr", str(number / 100))
        assert len({trainer.wait_config(lr=number / 100) for trainer in trainers}) == 1, path
        assert training.key("state/view")["number"] == 1, path
    training.stop()
    assert_in_step(*trainers)


@pytest.fixture
def readers(short_folder: Path, tmp_path: Path, namespace: str) -> Iterator[TrainingRun]:
    """A run whose user may read but not write."""
    with EtcdServer(auth="ann:secret") as server:
        for command in (
            ("role", "add", "reader"),
            ("role", "grant-permission", "reader", "--prefix=true", "read", ""),
            ("user", "add", "eve:secret"),
            ("user", "grant-role", "eve", "reader"),
        ):
            server.etcdctl(*command)
        password = tmp_path / "eve"
        password.write_text("secret\n")
        password.chmod(0o600)
        run = TrainingRun(server, short_folder, namespace=namespace)
        run.extra_environment = {"INSTEP_USER": "eve", "INSTEP_PASSWORD_FILE": str(password)}
        yield run
        run.close()


def test_a_user_without_write_permission_gets_an_error_at_once(readers: TrainingRun) -> None:
    trainer = readers.start(0, 1, environment=readers.extra_environment)
    error = trainer.wait_said("error")
    assert error["kind"] == "EtcdDenied"
    assert "permission" in error["text"]
    assert trainer.finish() == 4


def test_a_rank_whose_place_was_given_away_cannot_reclaim_it(training: TrainingRun) -> None:
    """Its node was unreachable beyond its lease; it returns with outdated values."""
    ghost = training.start(0, 2, node="a")
    other = training.start(1, 2, node="b")
    for trainer in (ghost, other):
        trainer.wait_said("joined")
    agent = training.agent_pid("a")
    os.kill(agent, signal.SIGSTOP)
    heir = training.start(0, 2, "--take-over", node="c")
    assert heir.wait_said("joined")["view"] == 2
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in (heir, other)}) == 1
    with contextlib.suppress(ProcessLookupError):  # its rank may have replaced it meanwhile
        os.kill(agent, signal.SIGCONT)
    assert ghost.wait_said("error")["kind"] == "Evicted"
    assert all(event["config"]["lr"] == 3e-4 for event in ghost.said("config"))
    training.put("lr", "0.02")
    assert len({trainer.wait_config(lr=0.02) for trainer in (heir, other)}) == 1
    assert training.key("state/view")["number"] == 2
    training.stop(heir, other)
    assert_in_step(heir, other)


def test_an_agent_replaced_during_an_outage_answers_its_rank_at_the_gate(fragile_training: TrainingRun) -> None:
    training = fragile_training
    with open_plan(training) as plan:
        training.server.pause()
        os.kill(training.agent_pid("a"), signal.SIGKILL)
        plan.go_to_gate()
        wait_for(lambda: any("waits before step" in line for line in plan.held.errors), "the rank to say that it waits")
        training.server.resume()
        wait_for(lambda: training.key(f"state/plans/{plan.number}/decision"), "the decision")
        plan.let_go()
        training.stop()
    assert_in_step(plan.held, plan.stuck)


def test_a_script_started_without_torchrun_does_not_take_a_run_over(training: TrainingRun) -> None:
    trainers = training.start_all(2)
    lonely = training.start(0, 1, node="c")
    error = lonely.wait_said("error")
    assert error["kind"] == "JoinRefused"
    assert "the world size is 1, the others say 2" in error["text"]
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    training.stop(*trainers)


def test_answers_from_before_the_state_was_deleted_are_ignored(training: TrainingRun) -> None:
    trainers = training.start_all(2, nodes="ab")
    for lr in (0.01, 0.02):
        training.put("lr", str(lr))
        for trainer in trainers:
            trainer.wait_config(lr=lr)
    training.stop(*trainers)
    training.server.etcdctl("del", "--prefix", f"{training.namespace}/gpt-a/state/")
    again = training.start_all(2, nodes="ab")
    training.put("lr", "0.03")
    assert len({trainer.wait_config(lr=0.03) for trainer in again}) == 1
    training.stop(*again)
    assert_in_step(*again)
