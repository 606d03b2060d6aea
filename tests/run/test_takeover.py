"""A leader that dies, hangs or vanishes is followed by another, and the history records why."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chaos.harness.processes import parent_of

from instep.testing import EtcdServer
from run.harness import Trainer, TrainingRun, assert_in_step, wait_for

TTL_S = 2
STALL = {"INSTEP_STALL_TIMEOUT_S": "1"}
LONG_LEASE_S = 30
LONG_TTL = {"INSTEP_TTL_S": str(LONG_LEASE_S)}
FOLLOWS_S = 10.0
"""What the worst take-over after a death may take on a busy machine: far less than such a lease."""


def leading(trainers: list[Trainer]) -> list[int]:
    """The ranks that reported last that they lead."""
    return [rank for rank, trainer in enumerate(trainers) if (said := trainer.said("leads")) and said[-1]["leads"]]


def wait_leading(trainers: list[Trainer], *but: int, timeout_s: float = 20) -> int:
    """The one rank that leads, as soon as it is not in `but`."""

    def one() -> list[int] | None:
        found = leading(trainers)
        return found if len(found) == 1 and found[0] not in but else None

    return int(wait_for(one, f"one leader, none of {but}", timeout_s)[0])


def wait_term(training: TrainingRun, rank: int, after: int = 0) -> dict[str, Any]:
    """The term of that rank, once it is the newest one."""

    def newest() -> dict[str, Any] | None:
        term = training.key("state/leader")
        found = training.key(f"history/leaders/{term['term']}") if term and term["term"] > after else None
        return found if found and found["rank"] == rank else None

    return dict(wait_for(newest, f"a term of rank {rank}"))


def terms(training: TrainingRun, after: int) -> list[dict[str, Any]]:
    """The terms that have begun since that token, in order: the history keeps even short ones."""
    paths = [key.removeprefix(f"{training.namespace}/gpt-a/") for key in training.keys("history/leaders/")]
    found = [term for path in paths if (term := training.key(path)) and term["token"] > after]
    return sorted(found, key=lambda term: int(term["token"]))


def wait_steps(training: TrainingRun, trainers: list[Trainer], steps: int = 100) -> None:
    """Until their agents have observed the pace of the workers."""
    reports = [f"reports/metrics/{rank}" for rank in range(len(trainers))]
    wait_for(lambda: all(((training.key(path) or {}).get("step") or 0) > steps for path in reports), f"{steps} steps")


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_killed_leader_is_followed_at_the_next_boundary_by_a_rank_of_its_node(training: TrainingRun) -> None:
    training.extra_environment.update(LONG_TTL)
    trainers = training.start_all(3)
    first = wait_leading(trainers)
    assert first == 0
    trainers[0].kill()
    killed_at = time.monotonic()
    assert wait_leading(trainers[1:]) == 0
    assert trainers[1].said("leads")[-1]["at"] - killed_at < FOLLOWS_S
    term = wait_term(training, 1)
    assert term["why"] == "its process died"
    assert training.key(f"history/leaders/{term['term'] - 1}")["rank"] == 0
    assert term["token"] > training.key(f"history/leaders/{term['term'] - 1}")["token"]
    again = training.start(0, 3)
    again.wait_said("joined")
    trainers[0].finish()
    training.stop(again, *trainers[1:])
    assert leading([again, *trainers[1:]]) == [1]  # the leader keeps the lead when a lower rank returns


def test_a_killed_leader_is_followed_by_a_rank_of_another_node(training: TrainingRun) -> None:
    training.extra_environment.update(LONG_TTL)
    trainers = training.start_all(4, nodes="ab")
    first = wait_leading(trainers)
    trainers[first].kill()
    killed_at = time.monotonic()
    others = [trainer for trainer in trainers if trainer is not trainers[first]]
    second = others[wait_leading(others)]
    assert second.said("leads")[-1]["at"] - killed_at < FOLLOWS_S
    rank = trainers.index(second)
    assert rank // 2 != first // 2
    assert wait_term(training, rank)["why"] == "its process died"
    trainers[first].finish()
    training.stop(*others)


def test_a_leader_that_leaves_is_followed_and_the_history_says_that_it_left(training: TrainingRun) -> None:
    ends = [training.node(node) / "end" for node in "ab"]
    trainers = [training.start(rank, 2, f"--stop-file={ends[rank]}", node="ab"[rank]) for rank in range(2)]
    first = wait_leading(trainers)
    ends[first].touch()
    stays = 1 - first
    wait_leading([trainers[stays]])
    assert wait_term(training, stays)["why"] == "it left"
    ends[stays].touch()
    assert [trainer.finish() for trainer in trainers] == [0, 0]


def test_a_stopped_leader_loses_its_lead_while_all_others_wait_for_it(
    training: TrainingRun,
) -> None:
    """The others wait in a step until the stopped one continues, as in a collective."""
    training.extra_environment.update(STALL)
    barrier = training.node("a") / "barrier"
    trainers = training.start_all(4, f"--barrier={barrier}", nodes="ab")
    first = wait_leading(trainers)
    wait_steps(training, trainers)
    others = [trainer for trainer in trainers if trainer is not trainers[first]]
    token = training.key("state/leader")["token"]
    with stopped(trainers[first].process.pid):
        barrier.touch()
        for trainer in others:
            trainer.wait_said("waiting")
        # Workers of its node get a turn too, but the lead ends at the other node, never at the stopped worker.
        wait_for(
            lambda: {term["rank"] // 2 for term in terms(training, token)} - {first // 2}, "the other node to lead"
        )
        assert terms(training, token)[0]["why"].startswith("it passed no step boundary for ")
        barrier.unlink()
    wait_for(lambda: leading(trainers) == [training.key("state/leader")["rank"]], "one leader that all know of")
    assert first not in {term["rank"] for term in terms(training, token)}
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    assert [event["leads"] for event in trainers[first].said("leads")] == [True, False]
    training.stop()
    assert_in_step(*trainers)


def test_a_stopped_leader_yields_to_a_progressing_rank_of_its_node(training: TrainingRun) -> None:
    training.extra_environment.update(STALL)
    trainers = training.start_all(2)
    assert wait_leading(trainers) == 0
    wait_steps(training, trainers)
    with stopped(trainers[0].process.pid):
        wait_leading(trainers[1:])
        assert training.key("state/leader")["rank"] == 1
    wait_for(lambda: leading(trainers) == [1], "rank 0 to learn that it no longer leads")
    training.stop()


def test_a_slow_run_keeps_its_leader(training: TrainingRun) -> None:
    """Steps of 0.25 s and a stall timeout of 1 s; then one step takes ten times as long, and no worker hangs."""
    training.extra_environment.update(STALL)
    barrier = training.node("a") / "barrier"
    trainers = training.start_all(2, "--step-s=0.25", f"--barrier={barrier}", nodes="ab")
    first = wait_leading(trainers)
    token = training.key("state/leader")["token"]
    wait_steps(training, trainers, 10)
    barrier.touch()
    for trainer in trainers:
        trainer.wait_said("waiting")
    time.sleep(2.5)  # what is tested is a time: more than the timeout, ten steps
    barrier.unlink()
    training.put("lr", "0.01")
    for trainer in trainers:
        trainer.wait_config(lr=0.01)
    assert (training.key("state/leader")["token"], leading(trainers)) == (token, [first])
    training.stop()


def test_a_frozen_node_is_followed_after_its_lease_and_does_not_lead_when_it_wakes(
    training: TrainingRun,
) -> None:
    trainers = training.start_all(4, nodes="ab")
    first = wait_leading(trainers)
    node = "ab"[first // 2]
    agent = training.agent_pid(node)
    frozen = [trainer for rank, trainer in enumerate(trainers) if rank // 2 == first // 2]
    others = [trainer for trainer in trainers if trainer not in frozen]
    with stopped(agent, parent_of(agent), *(trainer.process.pid for trainer in frozen)):
        frozen_at = time.monotonic()
        second = others[wait_leading(others)]
        assert second.said("leads")[-1]["at"] - frozen_at < TTL_S + FOLLOWS_S
        assert wait_term(training, trainers.index(second))["why"] == "its node was lost"
    wait_for(lambda: leading(frozen) == [], "the frozen rank to learn that it no longer leads")
    training.put("lr", "0.01")
    assert len({trainer.wait_config(lr=0.01) for trainer in trainers}) == 1
    training.stop()
    assert_in_step(*trainers)


def test_a_rank_whose_agent_was_replaced_learns_that_another_node_leads(training: TrainingRun) -> None:
    """Its new agent does not know what the former one has reported."""
    trainers = training.start_all(2, nodes="ab")
    first = wait_leading(trainers)
    other = 1 - first
    agent = training.agent_pid("ab"[first])
    with stopped(parent_of(agent), trainers[first].process.pid):
        os.kill(agent, signal.SIGKILL)  # no process starts another one until its lease has ended
        wait_for(lambda: trainers[other].said("leads"), "the other node to lead")
    wait_for(lambda: leading(trainers) == [other], "the first to hear it")
    training.stop()


def test_a_leader_cut_off_from_etcd_stops_leading_before_another_leads(
    fragile_training: TrainingRun,
) -> None:
    """Its agent knows by its own clock when the lease can no longer be relied on."""
    training = fragile_training
    trainers = training.start_all(2, nodes="ab")
    first = wait_leading(trainers)
    assert isinstance(training.server, EtcdServer)
    training.server.pause()
    try:
        wait_for(lambda: not leading(trainers), "no rank to lead", TTL_S + FOLLOWS_S)
    finally:
        training.server.resume()
    wait_leading(trainers)
    assert [event["leads"] for event in trainers[first].said("leads")][:2] == [True, False]
    training.stop()


def test_an_agent_that_is_stopped_passes_its_lead_on_at_once(training: TrainingRun) -> None:
    training.extra_environment.update(LONG_TTL)
    trainers = training.start_all(2, nodes="ab")
    first = wait_leading(trainers)
    agent = training.agent_pid("ab"[first])
    os.kill(agent, signal.SIGINT)
    told_at = time.monotonic()
    wait_for(lambda: leading(trainers) == [1 - first], "the other node to lead", 20)
    assert trainers[1 - first].said("leads")[-1]["at"] - told_at < FOLLOWS_S
    assert wait_term(training, 1 - first)["why"] == "its agent was stopped"
    training.stop()


def test_an_agent_killed_with_its_supervisor_is_replaced_in_a_second_not_a_lease(training: TrainingRun) -> None:
    """Its workers start another agent, which moves the keys to its own lease and leads."""
    training.extra_environment.update(LONG_TTL)
    trainers = training.start_all(2)
    wait_leading(trainers)
    agent = training.agent_pid()
    for pid in (parent_of(agent), agent):
        os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    training.put("lr", "0.01")
    for trainer in trainers:
        trainer.wait_config(lr=0.01)
    assert time.monotonic() - killed_at < LONG_LEASE_S / 2
    training.stop()
    assert_in_step(*trainers)


def test_a_leader_whose_agent_is_killed_keeps_its_term(training: TrainingRun) -> None:
    training.extra_environment.update(LONG_TTL)
    trainers = training.start_all(4, nodes="ab")
    term = training.key("state/leader")
    agent = training.agent_pid("ab"[wait_leading(trainers) // 2])
    for pid in (parent_of(agent), agent):
        os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    training.put("lr", "0.01")
    for trainer in trainers:
        trainer.wait_config(lr=0.01)
    assert training.key("state/leader") == term
    assert time.monotonic() - killed_at < LONG_LEASE_S / 2
    training.stop()
    assert_in_step(*trainers)
