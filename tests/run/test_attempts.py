"""The retry budget: failures are counted over restarts, and a run that fails too often is not restarted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chaos.harness.processes import parent_of

from cli.command import Ended, instep
from run.harness import TrainingRun, wait_for
from run.saver_team import Team, Worker

SCRIPT = Path(__file__).with_name("barrier_worker.py")
LIMIT = {"INSTEP_MAX_RESTARTS": "2"}


@pytest.fixture
def team(training: TrainingRun, tmp_path: Path) -> Iterator[Team]:
    team = Team(training, tmp_path, SCRIPT)
    yield team
    team.close()


def command(team: Team, *words: str) -> Ended:
    return instep(*words, env={**os.environ, **team.training.environment()})


def counted(team: Team) -> dict[str, int]:
    return dict((team.training.key("attempts") or {}).get("counts", {}))


def die(worker: Worker, number: int = signal.SIGKILL) -> None:
    worker.kill(number)
    worker.process.wait()


def fail(worker: Worker, text: str) -> None:
    worker.tell("fail", text=text)
    assert worker.process.wait() == 1


def join(team: Team, rank: int, world_size: int, node: str, **environment: str) -> tuple[Worker, dict[str, Any]]:
    worker = team.start(rank, world_size, node, {**LIMIT, **environment})
    return worker, worker.answer()


def test_failures_are_counted_by_cause_up_to_the_restart_limit(team: Team) -> None:
    """A refused worker gets the failures and the fix, training workers continue, and a reset admits others at once."""
    first, second = team.join("ab", **LIMIT)
    agent = team.training.agent_pid("a")
    die(second)
    second, _ = join(team, 1, 2, "b")
    fail(second, "loss is nan")
    second, answer = join(team, 1, 2, "b")
    assert answer["view"] == 3
    assert counted(team) == {"killed by signal 9 (SIGKILL)": 1, "RuntimeError": 1}
    die(second, signal.SIGSEGV)

    refused, answer = join(team, 1, 2, "b")
    assert (answer["error"], answer["exit_code"], refused.process.wait()) == ("JoinRefused", 7, 7)
    assert "failed 3 times and may be restarted 2 times" in answer["text"]
    for part in ("SIGSEGV", "rank 1 on", "RuntimeError: loss is nan", "SIGKILL", "'instep reset gpt-a'"):
        assert part in answer["text"]
    assert "RuntimeError" in join(team, 1, 2, "c")[1]["text"]
    assert sum(counted(team).values()) == 3
    wait_for(lambda: not team.training.keys("state/refused/"), "outdated refusals to be deleted")
    assert first.ask("step", step=0)["step"] == 0

    told = command(team, "status", "gpt-a").out
    assert "3 times, 2 restarts are allowed" in told
    was = json.loads(command(team, "reset", "gpt-a", "--why", "fixed", "--json").out)
    assert was["before"]["count"] == 3
    assert was["before"]["failures"][0]["cause"] == "killed by signal 11 (SIGSEGV)"
    cleared = team.training.key("attempts")["cleared"]
    assert (cleared["failures"], cleared["reason"]) == (3, "fixed")
    assert command(team, "reset", "gpt-a").out == "gpt-a: no failure was counted, so there is nothing to reset\n"
    second, answer = join(team, 1, 2, "b")
    assert answer["view"] == 4
    assert team.training.agent_pid("a") == agent
    assert counted(team) == {}


def test_a_run_whose_ranks_all_crash_has_failed_once(team: Team) -> None:
    """Also if each rank fails in its own way, one after the other."""
    workers = team.join("aabb", **LIMIT)
    fail(workers[2], "out of memory")
    for worker in workers[:2]:
        die(worker)
    fail(workers[3], "connection reset by peer")
    team.join("aabb", **LIMIT)
    assert counted(team) == {"RuntimeError": 1}
    (failure,) = team.training.key("attempts")["failures"]
    assert (failure["rank"], failure["text"], failure["view"]) == (2, "out of memory", 1)
    assert team.training.keys("reports/failures/") == []


def test_a_node_that_vanishes_is_a_failure_without_a_report(team: Team) -> None:
    workers = team.join("ab", **LIMIT)
    agent = team.training.agent_pid("b")
    supervisor = parent_of(agent)
    for pid in (supervisor, agent, workers[1].process.pid):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not team.training.keys("reports/members/1/"), "the lease has ended")
    join(team, 1, 2, "c")
    assert counted(team) == {"node lost": 1}


def test_a_clean_end_is_no_failure_and_clears_the_count(team: Team) -> None:
    """A script may also exit within the block, if its exit code is 0."""
    first, second = team.join("ab", **LIMIT)
    die(second)
    second, _ = join(team, 1, 2, "b")
    assert sum(counted(team).values()) == 1
    first.process.stdin.close()  # type: ignore[union-attr]  # it is a pipe: the loop of the script ends
    second.tell("exit", code=0)
    assert [worker.process.wait() for worker in (first, second)] == [0, 0]
    first, second = team.join("ab", **LIMIT)
    assert counted(team) == {}
    second.tell("exit", code=3)
    assert second.process.wait() == 3
    join(team, 1, 2, "b")
    assert counted(team) == {"SystemExit": 1}


def test_a_run_that_was_stopped_has_not_failed(team: Team) -> None:
    from instep.protocol.records import Command

    workers = team.join("ab", INSTEP_MAX_RESTARTS="0")
    steps = iter(range(10**6))

    def is_stopping() -> bool:
        step = next(steps)
        for worker in workers:
            worker.ask("step", step=step)
        return "ends_at" in team.training.key("state/agreed")["directive"]

    for _ in range(3):
        is_stopping()
    order = Command(kind="stop", save=False).encode()
    team.training.server.etcdctl("put", "--", f"{team.training.namespace}/gpt-a/commands/stop", order)
    wait_for(is_stopping, "the stop is agreed on")
    for worker in workers:
        die(worker)
    workers = team.join("ab", INSTEP_MAX_RESTARTS="0")
    assert counted(team) == {}
    die(workers[1])
    _, answer = join(team, 1, 2, "b")
    assert "failed once and may be restarted 0 times" in answer["text"]


def test_if_ranks_disagree_the_lowest_restart_limit_counts(team: Team) -> None:
    _, second = team.join("ab", INSTEP_MAX_RESTARTS="5")
    die(second)
    assert join(team, 1, 2, "b", INSTEP_MAX_RESTARTS="0")[1]["error"] == "JoinRefused"
    assert join(team, 1, 2, "b", INSTEP_MAX_RESTARTS="5")[1]["view"] == 2


def test_an_invalid_limit_is_refused(team: Team) -> None:
    for text, part in (("-1", "give 0 or more"), ("many", "a whole number")):
        worker, answer = join(team, 0, 1, "a", INSTEP_MAX_RESTARTS=text)
        assert (answer["error"], worker.process.wait()) == ("SettingsError", 2)
        assert part in answer["text"]


def test_resetting_an_unknown_run_is_an_error(team: Team) -> None:
    ended = command(team, "reset", "gpt-a")
    assert (ended.code, ended.out) == (6, "")
    assert command(team, "reset", "gpt/a").code == 2
