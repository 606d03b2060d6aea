"""Where a run continues: after a restore, after its end, and after the ranks have agreed on a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import instep
from coordination.model_etcd import ModelEtcd
from coordination.test_commit_schedules import KEYS, manifest
from instep.etcd import Listing, Op
from instep.protocol import checkpoints
from instep.protocol.actions import AbortPlan, CommitPlan, DeclineCommands, FormView, OpenPlan
from instep.protocol.checkpoints import CheckpointReads
from instep.protocol.commands import PendingCommand
from instep.protocol.leading import next_action
from instep.protocol.records import (
    Command,
    Decision,
    Directive,
    Plan,
    Pointer,
    Receipt,
    Resume,
    Snapshot,
)
from instep.protocol.situation import Situation, TrainingProgress
from instep.protocol.transactions import SeenRevisions, for_action
from instep.recipes.fence import Fence
from instep.wire.messages import Decide, PlanArmed, ProposePlan
from instep.worker.agreement import Agreement
from instep.worker.gate import Apply
from instep.worker.hyper import Codec
from unit.parts import DIGEST, SCHEMA, agreed, left, registered, view

TWO = view({"a": {0: 10}, "b": {1: 11}})
BOTH = (registered(0, 10, node="a"), registered(1, 11, node="b"))
GOOD = manifest(10, 5)
FENCE = Fence(f"{KEYS.election}aaaaa", 2)


class Hyper(instep.Hyperparameters):
    lr: float = 0.1


def now(**more: Any) -> Situation:
    """Two ranks on two nodes at step 30."""
    calm: dict[str, Any] = {
        "view": TWO,
        "agreed": agreed(),
        "registered": BOTH,
        "schemas": {DIGEST: SCHEMA.encode()},
        "schema": SCHEMA,
        "manifests": {GOOD.id: GOOD},
        "progress": TrainingProgress(step=30, step_time_s=0.1, margin_steps=4),
    }
    return Situation(**{**calm, **more})


def opened(situation: Situation) -> Plan:
    action = next_action(situation)
    assert isinstance(action, OpenPlan)
    return action.plan


def committed(situation: Situation, plan: Plan) -> Situation:
    """All ranks have promised and executed it."""
    action = next_action(replace(situation, plan=plan, acked=frozenset({"a", "b"})))
    assert isinstance(action, CommitPlan)
    receipts = {node: Receipt(node=node, steps={rank: plan.gate}) for rank, node in enumerate("ab")}
    return replace(
        situation,
        agreed=action.agreed,
        plan=plan,
        decision=Decision(commit=True),
        pending_commands=(),
        receipts=receipts,
        acked=frozenset(),
    )


def order(kind: Any, revision: int = 50, **more: Any) -> PendingCommand:
    return PendingCommand(f"id-{revision}", revision, Command(kind=kind, **more))


def restoring(**more: Any) -> Situation:
    return now(pending_commands=(order("restore", name=GOOD.id),), **more)


def test_a_paused_run_that_restores_a_checkpoint_stays_paused_at_its_new_step() -> None:
    """Not at the step at which it had been paused: until then every plan, also a stop for a preempted node, would
    have that step as its gate."""
    paused = agreed(directive=Directive(paused_at=30, reason="paused by an operator"))
    back = opened(restoring(agreed=paused))
    assert back.gate == 30
    after = committed(restoring(agreed=paused), back)
    assert after.agreed is not None
    assert after.agreed.directive == Directive(paused_at=11, reason="paused by an operator")
    worker: Agreement[Hyper] = Agreement(Codec(Hyper))
    worker.start(Snapshot(values={"lr": 0.1}, directive=Directive(paused_at=30)))
    worker.begin(30)
    worker.handlers.on_restore(lambda manifest: None)
    assert worker.on_plan(ProposePlan(back), 30) == [PlanArmed(back.number, back.digest)]
    worker.on_decision(Decide(back.number, True), 30)
    due = worker.due(30)
    assert isinstance(due, Apply)
    assert worker.apply(due, 30) == 11
    assert worker.directive.is_paused(11)


def test_a_requested_checkpoint_is_not_saved_again_when_its_step_runs_again() -> None:
    saved = agreed(directive=Directive(save_at=20))
    after = committed(restoring(agreed=saved), opened(restoring(agreed=saved)))
    assert after.agreed is not None
    assert after.agreed.directive.save_at is None


def test_restoring_a_forgotten_checkpoint_does_not_block_a_paused_run() -> None:
    """Otherwise its commit is refused again and again; paused ranks ask for no abort, and no other plan can follow."""
    paused = agreed(directive=Directive(paused_at=30))
    plan = opened(restoring(agreed=paused))
    gone = restoring(agreed=paused, plan=plan, acked=frozenset({"a", "b"}), manifests={})
    action = next_action(gone)
    assert isinstance(action, AbortPlan)
    assert isinstance(next_action(replace(gone, decision=action.decision)), DeclineCommands)


def test_a_save_before_the_ranks_go_back_does_not_become_the_newest() -> None:
    etcd = ModelEtcd()
    etcd.put(FENCE.key, "{}")
    fence = Fence(FENCE.key, etcd.revision)
    for item in (GOOD, newest := manifest(20, fence.token)):
        etcd.put(KEYS.checkpoint(item.id), item.encode())
    etcd.put(KEYS.latest, Pointer(id=newest.id, step=20, token=newest.token).encode())
    plan = Plan(
        number=4, view=1, gate=34, kind="restore", checkpoint=GOOD, values={}, previous={}, revision=3, change_id="c"
    )
    etcd.put(KEYS.open_mark(4), "1")
    back = for_action(CommitPlan(plan, agreed(plan=4, back=4)), KEYS, fence, SeenRevisions())
    assert etcd.txn(back.compares, back.then).succeeded
    assert newest_of(etcd) == GOOD.id
    saved = replace(manifest(31, fence.token), plan=3)  # the ranks go back before step 34
    results = etcd.txn((), checkpoints.look(KEYS, saved.id, fence)).results
    found = CheckpointReads(*(item.kvs[0] if item.kvs else None for item in results if isinstance(item, Listing)))
    txn = checkpoints.commit(KEYS, fence, saved, found, announced=False)
    etcd.txn(txn.compares, txn.then)
    assert newest_of(etcd) == GOOD.id


def newest_of(etcd: ModelEtcd) -> str:
    item = etcd.get(KEYS.latest)
    assert item is not None
    return Pointer.decode(item.value).id


def test_a_run_that_ended_before_its_pause_restarts_unpaused() -> None:
    ended = {"a": left(0, last_step=39), "b": left(1, last_step=39)}
    again = (registered(0, 20, node="a"), registered(1, 21, node="b"))
    action = next_action(now(agreed=agreed(directive=Directive(paused_at=40)), left=ended, registered=again))
    assert isinstance(action, FormView)
    assert action.view.fresh
    assert action.agreed.directive == Directive()


def test_a_view_is_not_formed_from_an_outdated_vote() -> None:
    """The leader's state lags and shows an open vote. In a view formed from it, all ranks must verify again; those that
    already train never do, and the newcomer would wait for 600 s."""
    etcd = ModelEtcd()
    etcd.put(FENCE.key, "{}")
    fence = Fence(FENCE.key, etcd.revision)
    voting = TWO.model_copy(update={"start": Snapshot(checkpoint=GOOD.id, vote=True)})
    etcd.put(KEYS.latest, Pointer(id=GOOD.id, step=10, token=5).encode())
    pointer = etcd.revision
    etcd.put(KEYS.view, voting.encode())
    seen = SeenRevisions(view=etcd.revision, pointer=pointer)
    known = Pointer(id=GOOD.id, step=10, token=5)
    replaced = (BOTH[0], registered(1, 12, node="b"))
    action = next_action(now(view=voting, pointer=known, registered=replaced))
    assert isinstance(action, FormView)
    assert action.view.start.vote
    etcd.txn((), (Op.put(KEYS.resume, Resume(view=1, id=GOOD.id, final=True).encode()),))
    txn = for_action(action, KEYS, fence, seen)
    assert not etcd.txn(txn.compares, txn.then).succeeded
