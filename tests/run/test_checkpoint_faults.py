"""Faults while a checkpoint is saved: a committed checkpoint is committed once, and an outdated one never."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from instep.testing import EtcdServer, Proxy
from run.harness import TrainingRun, wait_for
from run.saver_team import Team

LONG_TTL_S = 30
"""No lease ends in these tests: what is looked at is the commit."""


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path) -> Iterator[Team]:
    team = Team(training, tmp_path / "saved")
    yield team
    team.close()


@pytest.fixture
def patient_team(etcd_server: EtcdServer, short_folder: Path, namespace: str, tmp_path: Path) -> Iterator[Team]:
    """On its own etcd server, with long leases."""
    training = TrainingRun(etcd_server, short_folder, namespace=namespace, ttl_s=LONG_TTL_S)
    team = Team(training, tmp_path / "saved")
    yield team
    team.close()
    training.close()


def test_a_replaced_leader_is_fenced_and_its_save_is_not_listed(team: Team) -> None:
    leader, others = team.leader(*team.join("aa"))
    leader.ask("open", step=5)
    leader.ask("write")
    token = team.training.key("state/leader")["token"]
    for key in team.training.keys("election/"):
        team.training.server.etcdctl("del", key)
    wait_for(lambda: team.training.key("state/leader")["token"] > token, "another term")
    answer = leader.ask("commit")
    assert answer["error"] == "Fenced"
    assert answer["token"] == token
    assert "may be deleted" in answer["text"]
    assert others[0].ask("list")["ids"] == []
    assert team.training.key("checkpoints/latest") is None
    again, _ = team.leader(leader, *others)
    saved = again.ask("save", step=5)
    assert leader.ask("list")["ids"] == [saved["slot"]]


def test_a_rank_that_does_not_lead_any_more_saves_nothing(team: Team) -> None:
    """It led at its last boundary; since then its agent, and with it the lead, is gone."""
    leader, _ = team.leader(*team.join("ab"))
    leader.ask("step", step=5)
    agent = team.training.agent_pid("ab"[leader.rank])
    os.kill(agent, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{agent}").exists(), "the end of the agent")
    answer = leader.ask("save", step=5)
    assert "error" not in answer, answer
    assert answer["slot"] is None


def test_a_leader_frozen_past_its_lease_during_a_save_is_fenced(team: Team) -> None:
    workers = team.join("ab")
    leader, (other,) = team.leader(*workers)
    node = "ab"[leader.rank]
    stale = leader.ask("open", step=5)
    leader.ask("write")
    frozen = [team.training.agent_pid(node), leader.process.pid]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: other.ask("hear")["leads"], "the other to lead")
    saved = other.ask("save", step=5)
    leader.tell("commit")
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    answer = leader.answer()
    assert answer["error"] == "Fenced"
    assert saved["slot"] != stale["id"]
    assert other.ask("list")["ids"] == [saved["slot"]]
    assert team.training.key("checkpoints/latest")["id"] == saved["slot"]
    assert (Path(stale["path"]) / "state").exists()  # left for clean-up


def test_a_saver_killed_during_a_save_is_replaced_at_the_same_step(team: Team) -> None:
    leader, (other,) = team.leader(*team.join("ab", INSTEP_TTL_S=str(LONG_TTL_S)))
    begun = leader.ask("open", step=5)
    wait_for(lambda: (other.ask("hear")["saving"] or {}).get("id") == begun["id"], "the announcement")
    leader.ask("write")
    leader.kill()
    wait_for(lambda: other.ask("hear")["leads"], "the other to lead", timeout_s=LONG_TTL_S / 2)
    wait_for(lambda: other.ask("hear")["saving"] is None, "the announcement of the former leader to go")
    saved = other.ask("save", step=5)
    assert other.ask("list")["ids"] == [saved["slot"]]


def test_a_commit_whose_reply_is_lost_is_made_once(patient_team: Team) -> None:
    server = patient_team.training.server
    assert isinstance(server, EtcdServer)
    with Proxy("127.0.0.1", server.port) as proxy:
        (worker,) = patient_team.join("a", INSTEP_ETCD=proxy.endpoint)
        worker.ask("hear", wait_s=0.2)
        patient_team.leader(worker)
        worker.ask("open", step=5)
        worker.ask("write")
        proxy.lose_next_reply(containing='"digest"')
        assert worker.ask("commit")["committed"]
        assert proxy.statistics().replies_lost == 1
        (saved,) = worker.ask("list")["ids"]
        assert patient_team.versions() == {saved: 1}
        worker.ask("close")


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.01])
def test_a_commit_whose_agent_is_killed_is_made_once(patient_team: Team, delay_s: float) -> None:
    (worker,) = patient_team.join("a")
    patient_team.leader(worker)
    opened = worker.ask("open", step=5)
    worker.ask("write")
    agent = patient_team.training.agent_pid()
    worker.tell("commit")
    kill_after(agent, delay_s)
    answer = worker.answer()
    while not answer["committed"]:  # the next agent has not started yet: the commit is sent again
        assert answer["state"] == "sent"
        answer = worker.ask("commit")
    assert patient_team.versions() == {opened["id"]: 1}


def kill_after(pid: int, delay_s: float) -> None:
    """The delay is the moment of the fault."""
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)


def test_a_commit_during_an_outage_waits_5_s_at_most_and_is_made_later(patient_team: Team) -> None:
    workers = patient_team.join("ab")
    leader, (other,) = patient_team.leader(*workers)
    opened = leader.ask("open", step=5)
    leader.ask("write")
    patient_team.training.server.pause()
    waited = leader.ask("commit")
    assert waited == {**waited, "committed": False, "state": "sent"}
    assert waited["took_s"] < 8
    assert leader.ask("step", step=6)["took_s"] < 2  # the training continues
    os.kill(patient_team.training.agent_pid("ab"[leader.rank]), signal.SIGKILL)  # the next agent gets it too
    patient_team.training.server.resume()
    steps = itertools.count(7)

    def seen() -> bool:
        leader.ask("step", step=next(steps))
        return bool((other.ask("hear", wait_s=0.05)["saved"] or {}).get("id") == opened["id"])

    wait_for(seen, "the commit")
    assert leader.ask("commit")["committed"]
    assert patient_team.versions() == {opened["id"]: 1}


def test_a_repeated_commit_does_not_restore_a_forgotten_checkpoint(team: Team) -> None:
    (worker,) = team.join("a")
    team.leader(worker)
    worker.ask("open", step=5)
    assert worker.ask("commit")["committed"]
    worker.ask("hand_in_again")
    newer = worker.ask("save", step=6)["slot"]
    assert len(worker.ask("forget", ids=worker.ask("list")["ids"])["ids"]) == 1
    worker.ask("hand_in_again", times=3)
    assert worker.ask("list")["ids"] == [newer]
    assert team.training.key("checkpoints/latest")["id"] == newer


def test_a_worker_that_leaves_waits_for_its_commit(patient_team: Team) -> None:
    leader, (other,) = patient_team.leader(*patient_team.join("ab"))
    opened = leader.ask("open", step=5)
    leader.ask("write")
    patient_team.training.server.pause()
    assert not leader.ask("commit")["committed"]
    leader.tell("close")
    patient_team.training.server.resume()
    leader.answer()
    assert other.ask("list")["ids"] == [opened["id"]]


def test_the_vote_on_a_checkpoint_survives_the_death_of_an_agent(team: Team) -> None:
    (saver,) = team.join("a")
    team.leader(saver)
    saved = saver.ask("save", step=5)["slot"]
    saver.ask("close")
    workers = team.join("aab")
    for worker in workers[:2]:
        worker.tell("resume", slow_s=0.3)
    wait_for(lambda: team.training.keys("reports/verified/"), "the first node's answer")
    os.kill(team.training.agent_pid("a"), signal.SIGKILL)
    workers[2].tell("resume")
    assert [worker.answer()["id"] for worker in workers] == [saved] * 3


# -- forgetting -------------------------------------------------------------------------------------------------------


def test_neither_the_newest_checkpoint_nor_one_that_is_read_is_forgotten(team: Team) -> None:
    leader, (other,) = team.leader(*team.join("ab"))
    ids = [leader.ask("save", step=step)["slot"] for step in (1, 2, 3, 4)]
    assert other.ask("list")["ids"] == ids[::-1]
    assert "error" not in other.ask("read", id=ids[1])
    assert leader.ask("forget", ids=[*ids, "99-99"])["ids"] == [ids[0], ids[2]]
    other.ask("read_on", id=ids[1])
    wait_for(lambda: leader.ask("forget", ids=ids)["ids"] == [ids[1]], "the mark to go")
    assert other.ask("list")["ids"] == [ids[3]]
    gone = {"id": ids[0], "step": 1}
    assert other.ask("read_gone", **gone)["error"] == "CheckpointError"


def test_an_overwritten_leader_record_keeps_no_rank_from_saving(team: Team) -> None:
    leader, _ = team.leader(*team.join("aa"))
    team.training.server.etcdctl("put", "--", f"{team.training.namespace}/gpt-a/state/leader", "garbage")
    assert leader.ask("hear", wait_s=1.0)["leads"]
    saved = leader.ask("save", step=5)
    assert leader.ask("list")["ids"] == [saved["slot"]]


def test_a_reader_that_dies_blocks_nothing(team: Team) -> None:
    leader, (other,) = team.leader(*team.join("aa"))
    ids = [leader.ask("save", step=step)["slot"] for step in (1, 2)]
    other.ask("read", id=ids[0])
    assert leader.ask("forget", ids=ids)["ids"] == []
    other.kill()
    wait_for(lambda: leader.ask("forget", ids=ids)["ids"] == [ids[0]], "the mark to go")


def test_a_checkpoint_is_not_forgotten_before_the_ranks_that_resume_from_it_began(team: Team) -> None:
    saver, _ = team.leader(*team.join("a"))
    old = saver.ask("save", step=5)["slot"]
    saver.ask("close")
    workers = team.join("ab")
    for worker in workers:
        worker.tell("resume")
    assert [worker.answer()["id"] for worker in workers] == [old, old]
    leader, (other,) = team.leader(*workers)
    leader.ask("step", step=6)
    assert leader.ask("save", step=6)["slot"]
    assert leader.ask("forget", ids=[old])["ids"] == []  # the other one may still be loading it
    other.ask("step", step=6)
    wait_for(lambda: leader.ask("forget", ids=[old])["ids"] == [old], "the marks to go")


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_file_system_error_is_reported_with_its_fix_and_does_not_harm_the_run(team: Team) -> None:
    (worker,) = team.join("a")
    team.leader(worker)
    blocked = team.folder.parent / "file"
    blocked.write_text("x")
    for folder, cure in ((blocked / "below", "is a file"), (Path("/proc/nothing"), "look at the folder")):
        answer = worker.ask("save", step=5, folder=str(folder))
        assert answer["error"] == "CheckpointError"
        assert answer["exit_code"] == 12
        assert str(folder.parent) in answer["text"]
        assert cure in answer["text"], answer["text"]
    full = worker.ask("fail_to_save", step=5, full=True)
    assert full["error"] == "CheckpointError"
    assert "No space left on device; free space there" in full["text"]
    assert list(team.folder.iterdir()) == []  # what was given up uses no space
    assert worker.ask("step", step=6)["leads"]
    assert worker.ask("save", step=6)["state"] == "committed"


def test_a_block_that_raises_saves_nothing(team: Team) -> None:
    leader, (other,) = team.leader(*team.join("ab"))
    assert leader.ask("fail_to_save", step=5)["error"] == "KeyError"
    assert other.ask("fail_to_save", step=5)["error"] == "KeyError"
    assert leader.ask("list")["ids"] == []
    wait_for(lambda: other.ask("hear")["saving"] is None, "the announcement to be withdrawn")


def test_a_file_that_vanishes_before_the_commit_is_an_error_and_no_checkpoint(team: Team) -> None:
    (worker,) = team.join("a")
    team.leader(worker)
    path = worker.ask("open", step=5)["path"]
    shutil.rmtree(path)
    assert worker.ask("commit")["error"] == "CheckpointError"
    assert worker.ask("list")["ids"] == []


def test_a_rank_that_does_not_lead_gets_no_slot(team: Team) -> None:
    _, (other,) = team.leader(*team.join("ab"))
    answer = other.ask("open", step=5)
    assert answer["error"] == "Fenced"
    assert "its leader saves" in answer["text"]
    assert other.ask("save", step=5)["slot"] is None
    for step in (-1, 1.5, "x"):
        assert other.ask("save", step=step)["error"] == "StepError"


def test_a_step_may_be_saved_again(team: Team) -> None:
    leader, (other,) = team.leader(*team.join("ab"))
    first = leader.ask("save", step=5, text="first")
    again = leader.ask("save", step=5, text="again")
    assert first["slot"] == again["slot"]
    assert again["path"] == first["path"] + ".2"
    listed = other.ask("list")
    assert listed["ids"] == [again["slot"]]
    assert listed["newest"]["path"] == again["path"]


def test_damaged_records_affect_only_themselves(team: Team) -> None:
    (worker,) = team.join("a")
    team.leader(worker)
    first = worker.ask("save", step=5)["slot"]
    root = f"{team.training.namespace}/gpt-a/"
    for key, text in (
        ("checkpoints/latest", "{"),
        ("checkpoints/7-7", "[]"),
        ("state/saved", "x"),
        ("state/resume", "{}"),
    ):
        team.training.server.etcdctl("put", root + key, text)
    assert worker.ask("list")["ids"] == [first]
    saved = worker.ask("save", step=6)
    assert saved["state"] == "committed"
    assert worker.ask("list")["ids"] == [saved["slot"], first]
