"""The machine is not blind: with one rule of the protocol broken it finds the violation, and where that takes a rare
chain of events the chain is written down here. Every chain holds with the protocol as it is."""

from __future__ import annotations

from collections.abc import Callable

import agreement_mutants as mutants
import pytest
from agreement_machine import HUNT, AgreementMachine, DriftingMachine, LockstepMachine
from agreement_mutants import Mutant
from hypothesis.stateful import run_state_machine_as_test

TWO_NODES = ((0,), (1,))

BROKEN = r"runs with|instead of|was applied|paused at|stopped at|agreed on that|neither done"

Machine = type[AgreementMachine]
Chain = Callable[[AgreementMachine], None]


@pytest.mark.parametrize(
    ("machine", "mutant"),
    [
        (LockstepMachine, mutants.pass_the_gate_undecided),
        (DriftingMachine, mutants.commit_without_all_acks),
        (DriftingMachine, mutants.acknowledge_before_all_are_armed),
        pytest.param(LockstepMachine, mutants.commit_without_all_acks, marks=pytest.mark.long),
        # Takes minutes, and may end in a state in which tasks never come to rest before it finds the violation.
        pytest.param(DriftingMachine, mutants.pass_the_gate_undecided, marks=pytest.mark.long),
        # Below there is a chain of events for each of these two.
        pytest.param(LockstepMachine, mutants.newcomers_ignore_the_course, marks=pytest.mark.long),
        pytest.param(LockstepMachine, mutants.a_course_holds_when_it_is_promised, marks=pytest.mark.long),
    ],
    ids=lambda item: item.__name__,
)
def test_the_machine_finds_a_broken_rule(machine: Machine, mutant: Mutant) -> None:
    with mutant(), pytest.raises(AssertionError, match=BROKEN):
        run_state_machine_as_test(machine, settings=HUNT)


def a_rank_is_replaced_between_commit_and_gate(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.put({"lr": "0.2"})
    while (agreed := cluster.agreed()) is None or agreed.gate is None:
        for worker in cluster.workers.values():
            cluster.go(worker)
    assert all(worker.step < agreed.gate for worker in cluster.workers.values())
    cluster.kill(cluster.workers[1], lose_part=True)
    cluster.start(1, cluster.hosts[1])


def a_rank_is_replaced_when_all_have_promised_and_the_leader_does_not_know(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    for host in cluster.hosts:
        host.client.hold_watch("acks")
    cluster.put({"lr": "0.2"})
    while len(cluster.store.range(cluster.keys.acks).kvs) < 2:
        for worker in cluster.workers.values():
            cluster.go(worker)
    cluster.start(1, cluster.hosts[1])
    for host in cluster.hosts:
        host.client.release_watch("acks")
    cluster.loop.settle()


def a_rank_leaves_far_ahead_of_the_one_that_leads(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    assert cluster.training.lockstep is False
    while cluster.workers[1].step < cluster.workers[0].step + 20 or cluster.workers[1].inside:
        cluster.go(cluster.workers[1])
    cluster.leave(cluster.workers[1])
    cluster.put({"lr": "0.2"})


def the_database_is_full_while_a_rank_comes_to_its_gate(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    for host in cluster.hosts:
        host.client.hold_watch("acks")
    cluster.put({"lr": "0.2"})
    while len(cluster.store.range(cluster.keys.acks).kvs) < 2:
        cluster.go()
    plan = cluster.plan(1)
    assert plan is not None
    for host in cluster.hosts:
        host.client.hold_watch("state")  # a leader that sees the mark go would not try
    cluster.store.full = True
    while cluster.workers[0].step <= plan.gate:
        cluster.go(cluster.workers[0])
        cluster.loop.advance(0.02)
    assert cluster.workers[1].step < plan.gate
    cluster.store.full = False
    for host in cluster.hosts:
        host.client.release_watch("acks")
    cluster.loop.settle()


def a_rank_joins_a_run_that_is_paused(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.command("pause")
    while (agreed := cluster.agreed()) is None or agreed.course.paused_at is None:
        cluster.go()
    while cluster.go():
        pass  # until every rank stands
    cluster.kill(cluster.workers[1], lose_part=True)
    newcomer = cluster.start(1, cluster.hosts[1])
    for _ in range(20):
        cluster.go(newcomer)
        cluster.loop.advance(0.1)


def a_stop_that_was_promised_is_aborted(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    for host in cluster.hosts:
        host.client.hold_watch("acks")
    cluster.command("stop", save=False)
    while len(cluster.store.range(cluster.keys.acks).kvs) < 2:
        cluster.go()
    plan = cluster.plan(1)
    assert plan is not None
    for host in cluster.hosts:
        host.client.hold_watch("state")  # a leader that sees the abort would plan the stop anew
    while all(worker.alive and worker.step <= plan.gate for worker in cluster.workers.values()):
        cluster.go()  # who comes to the gate has the plan aborted
        cluster.loop.advance(0.02)


def a_rank_is_replaced_after_etcd_has_lost_a_change(machine: AgreementMachine) -> None:
    cluster, before = machine.cluster, machine.cluster.store.revision
    cluster.put({"lr": "0.2"})
    while any(worker.values()["lr"] != 0.2 for worker in cluster.workers.values()):
        cluster.go()
    cluster.go_back(before)
    cluster.kill(cluster.workers[1], lose_part=True)
    cluster.start(1, cluster.hosts[1])


def etcd_loses_a_decision_that_one_rank_has_heard_of(machine: AgreementMachine) -> None:
    """The other one comes to its gate while that rank's agent hears nothing of etcd."""
    cluster = machine.cluster
    for host in cluster.hosts:
        host.client.hold_watch("acks")
    cluster.put({"lr": "0.2"})
    while len(cluster.store.range(cluster.keys.acks).kvs) < 2:
        cluster.go()
    before = cluster.store.revision
    cluster.hosts[1].client.hold_watch("state")
    for host in cluster.hosts:
        host.client.release_watch("acks")
    cluster.loop.settle()
    plan, agreed = cluster.plan(1), cluster.agreed()
    assert plan is not None
    assert agreed is not None
    assert agreed.plan == 1
    knows, waits = cluster.workers[0], cluster.workers[1]
    while knows.values()["lr"] != 0.2:
        cluster.go(knows)
        if waits.step < plan.gate - 1 or not waits.inside:
            cluster.go(waits)
    assert waits.step == plan.gate - 1
    cluster.hosts[0].client.hold_calls()
    cluster.go_back(before)
    for _ in range(50):
        cluster.go(waits)
        cluster.loop.advance(0.02)
    assert waits.step == plan.gate
    assert not waits.inside


def etcd_loses_a_plan_that_was_promised_and_all_agents_are_new(machine: AgreementMachine) -> None:
    """None of them has seen what is lost; the ranks hold no decision that etcd does not."""
    cluster = machine.cluster
    before = cluster.store.revision
    for host in cluster.hosts:
        host.client.hold_watch("acks")
    cluster.put({"lr": "0.2"})
    while len(cluster.store.range(cluster.keys.acks).kvs) < 2:
        cluster.go()
    for host in cluster.hosts:
        host.crash(keep_down=True)
    cluster.go_back(before)
    cluster.put({"lr": "0.3"})


CHAINS: list[tuple[Machine, Chain, Mutant]] = [
    (LockstepMachine, a_rank_is_replaced_between_commit_and_gate, mutants.newcomers_ignore_the_gate),
    (LockstepMachine, a_rank_is_replaced_between_commit_and_gate, mutants.forget_the_previous_values),
    (
        LockstepMachine,
        a_rank_is_replaced_when_all_have_promised_and_the_leader_does_not_know,
        mutants.view_leaves_the_plan_open_and_commit_ignores_the_view,
    ),
    (DriftingMachine, the_database_is_full_while_a_rank_comes_to_its_gate, mutants.commit_without_the_mark),
    (DriftingMachine, a_rank_leaves_far_ahead_of_the_one_that_leads, mutants.who_left_counts_as_armed),
    (LockstepMachine, a_rank_joins_a_run_that_is_paused, mutants.newcomers_ignore_the_course),
    (
        LockstepMachine,
        a_stop_that_was_promised_is_aborted,
        mutants.a_course_holds_when_it_is_promised,
    ),
    (LockstepMachine, a_rank_is_replaced_after_etcd_has_lost_a_change, mutants.etcd_is_the_authority),
    (LockstepMachine, etcd_loses_a_decision_that_one_rank_has_heard_of, mutants.abort_whatever_has_the_number),
]


@pytest.mark.parametrize(("machine", "chain", "mutant"), CHAINS, ids=lambda item: item.__name__)
def test_a_chain_of_events_keeps_the_promise_and_breaks_it_with_the_rule_broken(
    machine: Machine, chain: Chain, mutant: Mutant
) -> None:
    _play(machine, chain)
    with mutant(), pytest.raises(AssertionError, match=BROKEN):
        _play(machine, chain)


def test_ranks_at_the_gate_of_a_plan_that_only_they_know_of_train_on() -> None:
    _play(LockstepMachine, etcd_loses_a_plan_that_was_promised_and_all_agents_are_new)


def _play(machine: Machine, chain: Chain) -> None:
    playing = machine()
    playing.begin_with(TWO_NODES, stop=0)
    with playing.stack:
        chain(playing)
        playing.come_to_rest()
