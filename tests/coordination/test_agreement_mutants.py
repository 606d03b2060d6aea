"""The machine is not blind: with one rule of the protocol broken it finds the violation, and where that takes a rare
chain of events the chain is written down here. Every chain holds with the protocol as it is."""

from __future__ import annotations

from collections.abc import Callable

import agreement_mutants as mutants
import pytest
from agreement_machine import HUNT, AgreementMachine, DriftingMachine, LockstepMachine
from agreement_mutants import Mutant
from hypothesis.stateful import run_state_machine_as_test
from model_cluster import NOT_FOR_WORKERS

from instep.coordination.records import Entered, Epoch
from instep.etcd import Op

ONE_NODE = ((0, 1),)
TWO_NODES = ((0,), (1,))
THREE_NODES = ((0,), (1,), (2,))

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
        pytest.param(
            DriftingMachine, mutants.pass_the_gate_undecided, marks=pytest.mark.long
        ),  # below there is a chain
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


def a_rank_comes_to_its_gate_before_the_acks_are_seen(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    for host in cluster.hosts:
        host.client.hold_watch("acks")
    cluster.put({"lr": "0.2"})
    while len(cluster.store.range(cluster.keys.acks).kvs) < 2:
        cluster.go()
    plan = cluster.plan(1)
    assert plan is not None
    cluster.hosts[0].client.hold_calls()  # its abort does not arrive, so it has to wait
    for _ in range(50):
        cluster.go(cluster.workers[0])
    assert cluster.workers[1].step < plan.gate
    for host in cluster.hosts:
        host.client.release_calls()
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


def two_ranks_are_replaced_and_the_first_has_not_heard_that_it_may_begin(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    host = cluster.hosts[1]
    host.may_start = False
    cluster.kill(cluster.workers[1], lose_part=True)
    newcomer = cluster.start(1, host)
    host.may_start = True
    assert host.listens()
    host.client.hold_watch("state")  # it registers the newcomer, and hears nothing
    cluster.go(newcomer)
    view, entered = cluster.view(), Entered.decode_or_none(cluster.value(cluster.keys.entered))
    assert view is not None
    assert (view.number, entered) == (2, Entered(view=2))
    host.crash(keep_down=False)  # the next agent finds the second view
    host.may_start = False
    cluster.kill(cluster.workers[2], lose_part=True)
    cluster.start(2, cluster.hosts[2])
    cluster.loop.settle()
    view = cluster.view()
    assert view is not None
    assert (view.number, view.staying) == (3, "0-1")


def what_a_node_holds_is_lost_once_more_and_another_agent_notices(machine: AgreementMachine) -> None:
    cluster, before = machine.cluster, machine.cluster.store.revision
    cluster.put({"lr": "0.2"})
    while any(worker.values()["lr"] != 0.2 for worker in cluster.workers.values()):
        cluster.go()
    cluster.hosts[1].crash(keep_down=False)  # so that the epoch is not settled
    cluster.hosts[1].may_start = False
    cluster.go_back(before)
    cluster.loop.advance(1.0)
    held = cluster.keys.head_of("n0")
    epoch = Epoch.decode_or_none(cluster.value(cluster.keys.epoch))
    assert epoch is not None
    assert not epoch.settled
    assert cluster.value(held) is not None
    following = epoch.model_copy(update={"number": epoch.number + 1})
    cluster.store.txn((), [Op.delete(held), Op.put(cluster.keys.epoch, following.encode())])
    cluster.loop.settle()
    assert cluster.value(held) is not None


def etcd_goes_back_while_one_of_two_ranks_of_a_node_has_applied_a_change(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.put({"lr": "0.2"})
    while (agreed := cluster.agreed()) is None or agreed.plan != 1:
        cluster.go()
    first, second = cluster.workers[0], cluster.workers[1]
    while first.values()["lr"] != 0.2:
        cluster.go(first)
    assert second.values()["lr"] != 0.2
    receipt = cluster.keys.receipt(1, "n0")
    cluster.go_back(cluster.store.revision)
    while second.values()["lr"] != 0.2:
        cluster.go(second)
    cluster.loop.advance(1.0)
    assert cluster.value(receipt) is not None


def etcd_loses_a_plan_that_was_aborted(machine: AgreementMachine) -> None:
    cluster, before = machine.cluster, machine.cluster.store.revision
    for host in cluster.hosts:
        host.client.hold_watch("acks")
    cluster.put({"lr": "0.2"})
    while (plan := cluster.plan(1)) is None:
        cluster.go()
    cluster.store.txn((), [Op.delete(cluster.keys.config_of("lr"))])  # it is not planned again
    while any(worker.step <= plan.gate for worker in cluster.workers.values()):
        cluster.go()
    cluster.go_back(before)
    for host in cluster.hosts:
        host.client.release_watch("acks")
    cluster.put({"lr": "0.3"})
    began = cluster.loop.time()
    while any(worker.values()["lr"] != 0.3 for worker in cluster.workers.values()):
        cluster.go()
        assert cluster.loop.time() < began + 20


def a_rank_waits_at_the_gate_of_a_plan_that_it_refused(machine: AgreementMachine) -> None:
    """The abort takes its time, and etcd still holds the change before it as the newest agreed one."""
    cluster = machine.cluster
    cluster.put({"lr": "0.2"})
    while any(worker.values()["lr"] != 0.2 for worker in cluster.workers.values()):
        cluster.go()
    agreed = cluster.agreed()
    assert agreed is not None
    refusing, host = cluster.workers[1], cluster.hosts[1]
    cluster.put({"clip": str(NOT_FOR_WORKERS)})
    while (plan := cluster.plan(agreed.plan + 1)) is None:
        cluster.go()
    host.client.hold_calls()
    pending = host.client.pending
    while not pending:
        cluster.go(refusing)
    aborting = tuple(pending)
    for _ in range(50):
        cluster.go(refusing)
    assert refusing.step == plan.gate
    for request in tuple(pending):
        if request not in aborting:  # the question for the decision is answered first
            pending.remove(request)
            request.answer()
    cluster.loop.settle()
    cluster.go(refusing)
    host.client.release_calls()
    cluster.loop.settle()


CHAINS: list[tuple[Machine, Chain, Mutant]] = [
    (LockstepMachine, a_rank_is_replaced_between_commit_and_gate, mutants.newcomers_ignore_the_gate),
    (LockstepMachine, a_rank_is_replaced_between_commit_and_gate, mutants.forget_the_previous_values),
    (
        LockstepMachine,
        a_rank_is_replaced_when_all_have_promised_and_the_leader_does_not_know,
        mutants.view_leaves_the_plan_open_and_commit_ignores_the_view,
    ),
    (DriftingMachine, a_rank_comes_to_its_gate_before_the_acks_are_seen, mutants.pass_the_gate_undecided),
    (
        DriftingMachine,
        a_rank_waits_at_the_gate_of_a_plan_that_it_refused,
        mutants.a_refused_plan_is_named_as_the_one_before_it,
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


def test_two_ranks_that_are_replaced_one_right_after_the_other_both_begin() -> None:
    """The second view takes the newcomer of the first for one that stays, for it may have begun."""
    _play(LockstepMachine, two_ranks_are_replaced_and_the_first_has_not_heard_that_it_may_begin, THREE_NODES)


def test_what_a_node_holds_is_written_again_in_each_epoch_whoever_began_it() -> None:
    _play(LockstepMachine, what_a_node_holds_is_lost_once_more_and_another_agent_notices)


def test_a_receipt_that_was_not_due_when_etcd_went_back_is_written_in_the_end() -> None:
    _play(DriftingMachine, etcd_goes_back_while_one_of_two_ranks_of_a_node_has_applied_a_change, ONE_NODE)


def test_no_number_of_an_aborted_plan_that_etcd_has_lost_is_given_again() -> None:
    """The ranks would not answer a plan of that number: each would run into its time-out."""
    _play(DriftingMachine, etcd_loses_a_plan_that_was_aborted)


def test_ranks_at_the_gate_of_a_plan_that_only_they_know_of_train_on() -> None:
    _play(LockstepMachine, etcd_loses_a_plan_that_was_promised_and_all_agents_are_new)


def _play(machine: Machine, chain: Chain, layout: tuple[tuple[int, ...], ...] = TWO_NODES) -> None:
    playing = machine()
    playing.begin_with(layout, stop=0)
    with playing.stack:
        chain(playing)
        playing.come_to_rest()
