"""Chains of events that break a promise if one rule of the protocol is broken, and keep it otherwise."""

from __future__ import annotations

from collections.abc import Callable

from agreement_machine import AgreementMachine
from model_cluster import NOT_FOR_WORKERS, Cluster, Worker

from instep.etcd import Op
from instep.protocol.records import Attempts, Entered, Epoch, Plan, Resume

Chain = Callable[[AgreementMachine], None]


def hold(cluster: Cluster, lane: str) -> None:
    """Hides changes below these keys from all agents, from now on."""
    for host in cluster.hosts:
        host.client.hold_watch(lane)


def release(cluster: Cluster, lane: str) -> None:
    for host in cluster.hosts:
        host.client.release_watch(lane)
    cluster.loop.settle()


def until(condition: Callable[[], object], cluster: Cluster, *workers: Worker) -> None:
    """Lets these workers, or all, continue until the condition holds."""
    for _ in range(600):
        if condition():
            return
        cluster.go(*workers)
        cluster.loop.advance(0.02)
    raise AssertionError(f"it does not happen: {list(cluster.workers.values())}")


def promise(cluster: Cluster, *, stop: bool = False) -> Plan:
    """All ranks have promised plan 1, but the leader does not know it."""
    hold(cluster, "acks")
    if stop:
        cluster.command("stop", save=False)
    else:
        cluster.put({"lr": "0.2"})
    while len(cluster.store.range(cluster.keys.acks).kvs) < len(cluster.hosts):
        cluster.go()
    plan = cluster.plan(1)
    assert plan is not None
    return plan


def change(cluster: Cluster) -> int:
    """Trains all ranks with a change; returns the revision before it."""
    before = cluster.store.revision
    cluster.put({"lr": "0.2"})
    until(lambda: all(worker.values()["lr"] == 0.2 for worker in cluster.workers.values()), cluster)
    return before


def replace(cluster: Cluster, rank: int, *, lose_part: bool = True) -> Worker:
    cluster.kill(cluster.workers[rank], lose_part=lose_part)
    return cluster.start(rank, cluster.workers[rank].host)


def save(cluster: Cluster, *, unreadable_for: int | None = None) -> str:
    """Saves a checkpoint of another step than the last one."""
    train(cluster, 2)
    manifest = cluster.save()
    assert manifest is not None
    if unreadable_for is not None:
        cluster.damaged.add((unreadable_for, manifest.id))
    return manifest.id


def restore(cluster: Cluster, checkpoint_id: str) -> None:
    cluster.command("restore", name=checkpoint_id)
    until(lambda: all(worker.back for worker in cluster.workers.values()), cluster)


def train(cluster: Cluster, steps: int = 5) -> None:
    """Runs this many more steps of ranks in lockstep."""
    step = cluster.training.finished.step + steps
    until(lambda: trains(cluster) and cluster.training.finished.step >= step, cluster)


def start_again(cluster: Cluster) -> None:
    for worker in tuple(cluster.workers.values()):
        cluster.kill(worker, lose_part=True)
    for worker in tuple(cluster.workers.values()):
        cluster.start(worker.rank, worker.host)


def trains(cluster: Cluster) -> bool:
    return all(worker.step for worker in cluster.workers.values())


# -- values, gates and views -----------------------------------------------------------------------------------------


def a_rank_is_replaced_between_commit_and_gate(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.put({"lr": "0.2"})
    while (agreed := cluster.agreed()) is None or agreed.gate is None:
        cluster.go()
    assert all(worker.step < agreed.gate for worker in cluster.workers.values())
    replace(cluster, 1)


def a_rank_is_replaced_after_all_promised_and_before_the_leader_knows(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    promise(cluster)
    cluster.start(1, cluster.hosts[1])
    release(cluster, "acks")


def a_rank_reaches_its_gate_before_the_acks_arrive(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    plan = promise(cluster)
    cluster.hosts[0].client.hold_calls()  # its abort does not arrive, so it has to wait
    for _ in range(50):
        cluster.go(cluster.workers[0])
    assert cluster.workers[1].step < plan.gate
    for host in cluster.hosts:
        host.client.release_calls()
    release(cluster, "acks")


def one_of_two_ranks_of_a_node_does_not_receive_the_plan(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    deaf, other = cluster.workers[1], cluster.workers[0]
    deaf.delays.down_held = True
    cluster.put({"lr": "0.2"})
    until(lambda: cluster.plan(1) is not None and other.run._agreement.gate.promised == 1, cluster, other)
    plan = cluster.plan(1)
    assert plan is not None
    until(lambda: deaf.step > plan.gate, cluster, deaf)


def a_rank_is_far_ahead_of_the_one_that_leads(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    ahead = cluster.workers[0].step + 20
    until(lambda: cluster.workers[1].step >= ahead and not cluster.workers[1].inside, cluster, cluster.workers[1])
    cluster.put({"lr": "0.2"})


def a_rank_leaves_far_ahead_of_the_one_that_leads(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    assert cluster.training.lockstep is False
    while cluster.workers[1].step < cluster.workers[0].step + 20 or cluster.workers[1].inside:
        cluster.go(cluster.workers[1])
    cluster.leave(cluster.workers[1])
    cluster.put({"lr": "0.2"})


def the_database_is_full_while_a_rank_reaches_its_gate(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    plan = promise(cluster)
    hold(cluster, "state")  # a leader that sees the mark go would not try
    cluster.store.full = True
    until(lambda: cluster.workers[0].step > plan.gate, cluster, cluster.workers[0])
    assert cluster.workers[1].step < plan.gate
    cluster.store.full = False
    release(cluster, "acks")


def two_ranks_are_replaced_before_the_first_may_begin(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    host = cluster.hosts[1]
    host.may_start = False
    newcomer = replace(cluster, 1)
    host.may_start = True
    assert host.listens()
    host.client.hold_watch("state")  # it registers the newcomer, but receives nothing
    cluster.go(newcomer)
    view, entered = cluster.view(), Entered.decode_or_none(cluster.value(cluster.keys.entered))
    assert view is not None
    assert (view.number, entered) == (2, Entered(view=2))
    host.crash(keep_down=False)  # the next agent finds the second view
    host.may_start = False
    replace(cluster, 2)
    cluster.loop.settle()
    view = cluster.view()
    assert view is not None
    assert (view.number, view.staying) == (3, "0-1")


def a_rank_waits_at_the_gate_of_a_plan_that_it_refused(machine: AgreementMachine) -> None:
    """The abort is slow, and in etcd the change before it is still the newest agreed one."""
    cluster = machine.cluster
    change(cluster)
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


# -- which process is which rank -------------------------------------------------------------------------------------


def the_first_of_two_ranks_of_a_node_is_replaced(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    replace(cluster, 0)
    until(lambda: trains(cluster), cluster)
    change(cluster)


def a_rank_is_replaced_while_its_process_lives(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.start(1, cluster.hosts[1])
    until(lambda: trains(cluster), cluster)
    change(cluster)


# -- commands --------------------------------------------------------------------------------------------------------


def a_rank_joins_a_run_that_is_paused(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.command("pause")
    while (agreed := cluster.agreed()) is None or agreed.directive.paused_at is None:
        cluster.go()
    while cluster.go():
        pass  # until every rank waits
    newcomer = replace(cluster, 1)
    for _ in range(20):
        cluster.go(newcomer)
        cluster.loop.advance(0.1)


def a_stop_that_was_promised_is_aborted(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    plan = promise(cluster, stop=True)
    hold(cluster, "state")  # a leader that sees the abort would plan the stop again
    while all(worker.alive and worker.step <= plan.gate for worker in cluster.workers.values()):
        cluster.go()  # a rank that comes to the gate has the plan aborted
        cluster.loop.advance(0.02)


def a_run_is_restored_and_restarted(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    first = save(cluster)
    save(cluster)
    restore(cluster, first)
    start_again(cluster)
    until(lambda: trains(cluster), cluster)


def a_run_is_restored_to_a_step_before_its_last_change_and_a_rank_is_replaced(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    checkpoint_id = save(cluster)
    change(cluster)
    restore(cluster, checkpoint_id)
    replace(cluster, 1)
    train(cluster)


def a_checkpoint_is_forgotten_while_the_run_agrees_to_restore_it(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    first = save(cluster)
    save(cluster)
    hold(cluster, "acks")
    cluster.command("restore", name=first)
    until(lambda: cluster.plan(1) is not None, cluster)
    cluster.forget(first)
    release(cluster, "acks")
    until(lambda: cluster.value(cluster.keys.decision(1)) is not None, cluster)


def a_rank_commits_a_checkpoint_after_a_restore_was_agreed(machine: AgreementMachine) -> None:
    """It has not gone back yet."""
    cluster = machine.cluster
    first = save(cluster)
    cluster.command("restore", name=first)
    until(lambda: (agreed := cluster.agreed()) is not None and agreed.back, cluster)
    assert cluster.training.finished.back == 0
    until(lambda: cluster.save() is not None, cluster)
    until(lambda: all(worker.back for worker in cluster.workers.values()), cluster)
    start_again(cluster)
    until(lambda: trains(cluster), cluster)


# -- the checkpoint vote ---------------------------------------------------------------------------------------------


def restart_with_two_checkpoints(cluster: Cluster, *, unreadable_for: int | None = None) -> None:
    save(cluster)
    save(cluster, unreadable_for=unreadable_for)
    start_again(cluster)


def a_rank_verifies_its_checkpoint_and_is_replaced_before_the_others_answer(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    restart_with_two_checkpoints(cluster)
    verified = cluster.keys.verified_of("n1")
    until(lambda: cluster.value(verified) is not None, cluster, cluster.workers[1])
    replace(cluster, 1).delays.up_held = True  # it is registered, and answers last
    for _ in range(20):
        cluster.go()
        cluster.loop.advance(0.1)


def the_leader_sees_one_answer_before_the_other(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    restart_with_two_checkpoints(cluster, unreadable_for=1)
    until(lambda: cluster.value(cluster.keys.verified_of("n0")) is not None, cluster, cluster.workers[0])
    until(lambda: trains(cluster), cluster)


def one_rank_cannot_read_the_newest_checkpoint(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    restart_with_two_checkpoints(cluster, unreadable_for=1)
    hold(cluster, "verified")
    until(lambda: cluster.value(cluster.keys.verified_of("n1")) is not None, cluster)
    release(cluster, "verified")
    until(lambda: trains(cluster), cluster)
    chosen = Resume.decode_or_none(cluster.value(cluster.keys.resume))
    assert chosen is not None
    assert chosen.id == min(cluster.saved, key=lambda name: cluster.saved[name].step)


# -- failures and attempts -------------------------------------------------------------------------------------------


def a_rank_fails_twice_and_the_leader_sees_only_the_first_failure(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.kill(cluster.workers[1], lose_part=True)
    hold(cluster, "failures")  # nor does it see that the record goes with the next view
    cluster.start(1, cluster.hosts[1])
    train(cluster)
    replace(cluster, 1)
    until(lambda: trains(cluster), cluster)
    counted = Attempts.decode(cluster.value(cluster.keys.attempts) or b"")
    assert [failure.view for failure in counted.failures] == [1, 2]


def the_attempts_are_reset_when_a_rank_fails_and_the_leader_does_not_see_it(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    replace(cluster, 1)
    train(cluster)
    assert Attempts.decode(cluster.value(cluster.keys.attempts) or b"").total == 1
    hold(cluster, "attempts")
    cluster.reset_attempts()
    replace(cluster, 1)
    cluster.loop.advance(2.0)
    release(cluster, "attempts")
    until(lambda: trains(cluster), cluster)
    assert Attempts.decode(cluster.value(cluster.keys.attempts) or b"").total == 1


# -- barriers --------------------------------------------------------------------------------------------------------


def one_rank_calls_a_barrier_again_before_the_other(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.meet()
    until(lambda: cluster.checks.released and not any(w.at_barrier for w in cluster.workers.values()), cluster)
    cluster.meet()
    first = cluster.workers[0]
    until(lambda: first.at_barrier, cluster)
    for _ in range(20):
        cluster.go(first)
        cluster.loop.advance(0.1)


def a_rank_is_replaced_when_a_barrier_is_released_and_no_rank_knows(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.meet()
    for worker in cluster.workers.values():
        worker.delays.down_held = True
    until(lambda: cluster.value(cluster.keys.barrier("meeting")) is not None, cluster)
    successor = replace(cluster, 1)
    until(lambda: successor.at_barrier, cluster, successor)
    for _ in range(20):
        cluster.go(successor)
        cluster.loop.advance(0.1)


# -- etcd's history goes back ----------------------------------------------------------------------------------------


def a_rank_is_replaced_after_etcd_has_lost_a_change(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    cluster.go_back(change(cluster))
    replace(cluster, 1)


def etcd_loses_a_decision_that_one_rank_knows(machine: AgreementMachine) -> None:
    """The other rank reaches its gate while the agent of that rank is cut off from etcd."""
    cluster = machine.cluster
    plan = promise(cluster)
    before = cluster.store.revision
    cluster.hosts[1].client.hold_watch("state")
    release(cluster, "acks")
    agreed = cluster.agreed()
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
    """None of them has seen the lost part; the ranks hold no decision that etcd lacks."""
    cluster = machine.cluster
    before = cluster.store.revision
    promise(cluster)
    for host in cluster.hosts:
        host.crash(keep_down=True)
    cluster.go_back(before)
    cluster.put({"lr": "0.3"})


def etcd_loses_what_a_node_holds_again_and_another_agent_notices(machine: AgreementMachine) -> None:
    cluster = machine.cluster
    before = change(cluster)
    cluster.hosts[1].crash(keep_down=False)  # the epoch is not settled without it
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
    hold(cluster, "acks")
    cluster.put({"lr": "0.2"})
    while (plan := cluster.plan(1)) is None:
        cluster.go()
    cluster.store.txn((), [Op.delete(cluster.keys.config_of("lr"))])  # it is not planned again
    while any(worker.step <= plan.gate for worker in cluster.workers.values()):
        cluster.go()
    cluster.go_back(before)
    release(cluster, "acks")
    cluster.put({"lr": "0.3"})
    began = cluster.loop.time()
    while any(worker.values()["lr"] != 0.3 for worker in cluster.workers.values()):
        cluster.go()
        assert cluster.loop.time() < began + 20
