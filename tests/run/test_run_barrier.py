"""Barriers of a run: no rank passes before all have arrived, whatever dies or is unreachable in the meantime."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from instep.testing import EtcdServer
from run.harness import TrainingRun, wait_for
from run.saver_team import Team, Worker

SCRIPT = Path(__file__).with_name("barrier_worker.py")


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path) -> Iterator[Team]:
    team = Team(training, tmp_path, SCRIPT)
    yield team
    team.close()


@pytest.fixture
def fragile_team(fragile_training: TrainingRun, tmp_path: Path) -> Iterator[Team]:
    """On its own etcd server."""
    team = Team(fragile_training, tmp_path, SCRIPT)
    yield team
    team.close()


def come(name: str, *workers: Worker, timeout_s: float = 60.0) -> None:
    for worker in workers:
        worker.tell("barrier", name=name, timeout_s=timeout_s)


def through(name: str, *workers: Worker) -> None:
    assert [worker.answer().get("through") for worker in workers] == [name] * len(workers)


def waiting(team: Team, name: str) -> set[int]:
    """Ranks that wait for the next release according to etcd."""
    server, root = team.training.server, f"{team.training.namespace}/gpt-a"
    released = json.loads(server.etcdctl("get", "-w", "json", f"{root}/state/barriers/{name}")).get("kvs", [])
    seen = released[0]["mod_revision"] if released else 0
    found = [team.training.key(f"reports/barriers/{key.rsplit('/', 1)[-1]}") for key in keys(team)]
    calls = [item["waiting"][name] for item in found if item is not None and name in item["waiting"]]
    return {rank for call in calls if call["seen"] == seen for rank in call["ranks"]}


def keys(team: Team) -> list[str]:
    return team.training.keys("reports/barriers/")


def test_no_rank_passes_a_barrier_before_all_have_arrived(team: Team) -> None:
    workers = team.join("aab")
    for name in ("epoch", "epoch", "eval"):
        come(name, *workers[:2])
        wait_for(lambda name=name: waiting(team, name) == {0, 1}, "two wait")
        assert all(worker._answers.empty() for worker in workers)
        come(name, workers[2])
        through(name, *workers)
    assert len(keys(team)) <= 2
    assert team.training.key("state/barriers/eval") == {"view": 1, "number": 3}


def test_arrivals_that_etcd_lost_with_its_history_are_written_again(fragile_team: Team) -> None:
    server = fragile_team.training.server
    assert isinstance(server, EtcdServer)
    workers = fragile_team.join("ab")
    backup = server.snapshot()
    come("epoch", workers[0])
    wait_for(lambda: waiting(fragile_team, "epoch") == {0}, "one waits")
    server.kill()
    server.restore(backup)
    come("epoch", workers[1])
    through("epoch", *workers)


def test_an_arrival_that_etcd_has_lost_unnoticed_is_reported_again(team: Team) -> None:
    workers = team.join("ab")
    come("epoch", workers[0], timeout_s=30.0)
    wait_for(lambda: waiting(team, "epoch") == {0}, "one waits")
    (key,) = keys(team)
    team.training.server.etcdctl("del", key)
    come("epoch", workers[1], timeout_s=30.0)
    through("epoch", *workers)


def test_a_missing_rank_is_named_with_the_barrier_at_which_it_waits(team: Team) -> None:
    workers = team.join("abc")
    come("right", workers[1], timeout_s=60.0)
    wait_for(lambda: waiting(team, "right") == {1}, "one waits")
    come("left", workers[0], timeout_s=3.0)
    answer = workers[0].answer()
    assert (answer["error"], answer["missing"], answer["missing_count"]) == ("BarrierTimeout", ["rank 1", "rank 2"], 2)
    assert answer["text"].endswith("rank 1, rank 2 did not arrive (waiting at another one: rank 1 at 'right')")
    assert answer["exit_code"] == 14
    assert 3.0 <= answer["took_s"] < 10.0
    assert waiting(team, "left") == set()
    come("right", workers[0], workers[2])
    through("right", *workers)


def test_a_rank_that_timed_out_does_not_count(team: Team) -> None:
    """The others wait for it, even if it arrived before."""
    first, second, third = team.join("abb")
    come("epoch", first, second, timeout_s=1.5)
    assert {first.answer()["error"], second.answer()["error"]} == {"BarrierTimeout"}
    come("epoch", third, timeout_s=1.5)
    assert third.answer()["missing"] == ["rank 0", "rank 1"]
    come("epoch", first, second, third)
    through("epoch", first, second, third)


def test_a_rank_that_retries_after_the_release_passes(team: Team) -> None:
    """It may have given up just as the release was written: the others have passed and do not return."""
    first, second = team.join("ab")
    come("epoch", first)
    wait_for(lambda: waiting(team, "epoch") == {0}, "one waits")
    os.kill(team.training.agent_pid("a"), signal.SIGSTOP)
    come("epoch", second)
    through("epoch", second)
    through("epoch", first)  # its agent is replaced, and the next one knows it


def test_ranks_that_have_ended_are_not_required(team: Team) -> None:
    workers = team.join("aab")
    come("epoch", *workers[:2])
    wait_for(lambda: waiting(team, "epoch") == {0, 1}, "two wait")
    workers[2].tell("exit", code=0)
    workers[2].answer()
    through("epoch", *workers[:2])


def test_invalid_arguments_are_refused_at_once(team: Team) -> None:
    (worker,) = team.join("a")
    names = [worker.ask("barrier", name=name) for name in ("a/b", "", 7)]
    times = [worker.ask("barrier", name="x", timeout_s=given) for given in (0, -1, "soon", float("nan"), True)]
    assert {answer["error"] for answer in names + times} == {"SettingsError"}
    assert all("barrier name" in answer["text"] for answer in names)
    assert ["more than 0 s" in answer["text"] for answer in times] == [True, True, False, False, False]
    assert ["a number of seconds" in answer["text"] for answer in times] == [False, False, True, True, True]
    assert worker.ask("barrier", name="x")["through"] == "x"  # alone, it waits for no other rank


# -- what dies meanwhile ----------------------------------------------------------------------------------------------


def test_a_barrier_survives_the_loss_of_agents_and_leaders(team: Team) -> None:
    workers = team.join("abc")
    come("epoch", *workers[:2])
    wait_for(lambda: waiting(team, "epoch") == {0, 1}, "two wait")
    for node in "abc":
        os.kill(team.training.agent_pid(node), signal.SIGKILL)
    come("epoch", workers[2])
    through("epoch", *workers)


def test_a_replacement_rank_has_to_arrive_itself(team: Team) -> None:
    """It died at the barrier: its arrival frees neither its successor nor the others."""
    workers = team.join("abc")
    come("epoch", *workers)
    through("epoch", *workers)
    come("epoch", *workers[:2])
    wait_for(lambda: waiting(team, "epoch") == {0, 1}, "two wait")
    workers[1].kill()
    workers[1].process.wait()
    new = team.start(1, 3, "b")
    assert new.answer()["view"] == 2
    come("epoch", workers[2])
    wait_for(lambda: waiting(team, "epoch") == {0, 2}, "the others wait")
    assert new.ask("step", step=0)["step"] == 0
    come("epoch", new)
    through("epoch", workers[0], new, workers[2])


@pytest.mark.parametrize("node", ["a", "c"])
def test_a_rank_whose_place_is_taken_is_evicted_from_the_barrier(team: Team, node: str) -> None:
    """By a process on its own node, or on another one."""
    workers = team.join("ab")
    come("epoch", workers[0])
    wait_for(lambda: waiting(team, "epoch") == {0}, "one waits")
    usurper = team.start(0, 2, node, {"TAKE_OVER": "1"})
    assert usurper.answer()["view"] == 2
    assert workers[0].answer()["error"] == "Evicted"
    come("epoch", usurper, workers[1])
    through("epoch", usurper, workers[1])


def test_a_barrier_waits_out_a_short_outage(fragile_team: Team) -> None:
    workers = fragile_team.join("ab")
    server = fragile_team.training.server
    server.pause()
    come("epoch", *workers)
    time.sleep(3.0)  # the outage
    server.resume()
    through("epoch", *workers)


def test_a_long_outage_is_named_at_the_timeout(fragile_team: Team) -> None:
    workers = fragile_team.join("ab")
    server = fragile_team.training.server
    server.pause()
    answer = workers[0].ask("barrier", name="epoch", timeout_s=1.0)
    server.resume()
    assert answer["error"] == "BarrierTimeout"
    assert "the missing ranks are not known" in answer["text"]
    assert answer["took_s"] < 1.0 + 3.0 + 4.0
    come("epoch", *workers)
    through("epoch", *workers)


# -- beside training --------------------------------------------------------------------------------------------------


def test_a_change_is_agreed_on_while_ranks_wait_and_applies_after_that(team: Team) -> None:
    """Two ranks promise from within the barrier; no rank applies anything there."""
    workers = team.join("ab")
    steps = itertools.count()

    def is_paced() -> bool:
        """Plans are made once the length of a step is known."""
        step = next(steps)
        for worker in workers:
            worker.ask("step", step=step)
        return bool((team.training.key("reports/metrics/0") or {}).get("step_time_s"))

    wait_for(is_paced, "the pace")
    before = next(steps)
    come("epoch", workers[0])
    wait_for(lambda: waiting(team, "epoch") == {0}, "one waits")
    team.training.put("lr", "0.5")
    wait_for(lambda: team.training.keys("state/plans/1"), "the plan")
    come("epoch", workers[1])
    through("epoch", *workers)
    wait_for(lambda: (team.training.key("state/plans/1/decision") or {}).get("commit"), "agreed")
    gate = team.training.key("state/agreed")["gate"]
    told = {step: [worker.ask("step", step=step)["lr"] for worker in workers] for step in range(before, gate + 2)}
    assert {step: set(values) for step, values in told.items()} == {
        step: {0.5 if step >= gate else 0.1} for step in told
    }
