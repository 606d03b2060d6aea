"""Schedules that a review has found; those that are marked still break a promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import instep
from coordination.model_etcd import ModelEtcd
from coordination.test_commit_schedules import KEYS, manifest
from instep.coordination import attempts, checkpoints, membership
from instep.coordination.actions import AbortPlan, CommitPlan, DeclineCommands, FormView, OpenPlan, RefuseWorkers
from instep.coordination.attempts import FailureSituation
from instep.coordination.checkpoints import CommitReads
from instep.coordination.commands import PendingCommand
from instep.coordination.fence import Fence
from instep.coordination.leading import next_action
from instep.coordination.records import (
    Attempts,
    Command,
    Decision,
    Directive,
    Plan,
    Pointer,
    Receipt,
    Refused,
    Resume,
    Snapshot,
)
from instep.coordination.situation import Situation, TrainingProgress
from instep.coordination.transactions import SeenRevisions, for_action
from instep.etcd import Listing, Op
from instep.worker.agreement import Agreement
from instep.worker.gate import Apply
from instep.worker.hyper import Codec
from instep.worker.ledger import Ledger
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
    """All have promised and done it."""
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


# -- mended with this file -------------------------------------------------------------------------------------------


def test_a_paused_run_that_is_taken_back_stays_paused_where_it_goes_on() -> None:
    """It went on training to the step at which it had been paused, and until then every plan, a stop for a node that
    goes as well, was for that step."""
    paused = agreed(course=Directive(paused_at=30, reason="paused by somebody"))
    back = opened(restoring(agreed=paused))
    assert back.gate == 30
    after = committed(restoring(agreed=paused), back)
    assert after.agreed is not None
    assert after.agreed.course == Directive(paused_at=11, reason="paused by somebody")
    worker: Agreement[Hyper] = Agreement(Codec(Hyper))
    worker.start({"values": {"lr": 0.1}, "plan": 0, "course": {"paused_at": 30}})
    worker.begin(30)
    worker.orders.on_restore(lambda manifest: None)
    told = back.model_dump(include={"gate", "values", "kind", "name", "course", "checkpoint"}, exclude_none=True)
    assert worker.hear_plan({"n": 1, **told}, 30) == [{"t": "armed", "n": 1, "digest": ""}]
    worker.hear_decision(1, True, 30)
    due = worker.due(30)
    assert isinstance(due, Apply)
    assert worker.apply(due, 30) == 11
    assert worker.course.is_paused(11)


def test_a_checkpoint_asked_for_once_is_not_saved_again_when_its_step_comes_again() -> None:
    saved = agreed(course=Directive(save_at=20))
    after = committed(restoring(agreed=saved), opened(restoring(agreed=saved)))
    assert after.agreed is not None
    assert after.agreed.course.save_at is None


def test_a_paused_run_is_not_held_by_a_restore_of_what_was_forgotten_meanwhile() -> None:
    """Its commit was refused for ever, and ranks that are paused ask for no abort: no plan could be made any more."""
    paused = agreed(course=Directive(paused_at=30))
    plan = opened(restoring(agreed=paused))
    gone = restoring(agreed=paused, plan=plan, acked=frozenset({"a", "b"}), manifests={})
    action = next_action(gone)
    assert isinstance(action, AbortPlan)
    assert isinstance(next_action(replace(gone, decision=action.decision)), DeclineCommands)


def test_a_save_into_a_directory_that_was_used_before_has_an_outcome_of_its_own() -> None:
    """A checkpoint that was forgotten and deleted, and a run that came to its step again under the same leader: the
    outcome of the first commit was taken for that of the second, which was never sent."""
    ledger = Ledger()
    first = {"t": "archive", "do": "commit", "manifest": {"id": "5-9"}}
    ledger.commit("/a", first)
    ledger.hear({"t": "archive", "do": "committed", "id": "5-9", "path": "/a"})
    assert ledger.outcome("/a") is not None
    ledger.begin("/a")
    assert ledger.outcome("/a") is None


def test_a_crowd_of_strangers_is_refused_a_few_at_a_time() -> None:
    """etcd takes 128 operations in a txn: those of a script of 200 ranks under the name of a run were too many, and
    the run's leader tried that again and again and did nothing else."""
    crowd = tuple(Refused(incarnation=f"{rank:032d}", rank=rank, reason="no") for rank in range(200))
    assert len(for_action(RefuseWorkers(crowd), KEYS, FENCE, SeenRevisions()).then) <= 128


# -- still to be mended ----------------------------------------------------------------------------------------------


def test_what_is_saved_before_the_ranks_go_back_is_not_what_a_restart_goes_on_from() -> None:
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
    saved = manifest(31, fence.token).model_copy(update={"plan": 3})  # the ranks go back before step 34
    results = etcd.txn((), checkpoints.look(KEYS, fence, saved.id)).results
    found = CommitReads(*(item.kvs[0] if item.kvs else None for item in results if isinstance(item, Listing)))
    txn = checkpoints.commit(KEYS, fence, saved, found, announced=False)
    etcd.txn(txn.compares, txn.then)
    assert newest_of(etcd) == GOOD.id


def newest_of(etcd: ModelEtcd) -> str:
    item = etcd.get(KEYS.latest)
    assert item is not None
    return Pointer.decode(item.value).id


def test_one_crash_after_which_ranks_are_replaced_one_by_one_counts_once() -> None:
    """Rank 0 fails, the others fail in the collective that waits for it, and each node starts its own rank anew."""
    count = Attempts()
    before = view({str(rank): {rank: 10 + rank} for rank in range(4)})
    for rank in range(4):
        names = {other: (20 if other <= rank else 10) + other for other in range(4)}
        here = tuple(registered(other, name, world_size=4, node=str(other)) for other, name in names.items())
        (group,) = membership.groups(here)
        past = FailureSituation(view=before, left={}, stopping=False, registered=here, reports=(), attempts=count)
        count = attempts.counted(past, group)
        before = view({str(other): {other: name} for other, name in names.items()}, number=before.number + 1)
    assert count.total == 1


def test_a_run_that_ended_before_the_step_of_its_pause_starts_anew_unpaused() -> None:
    ended = {"a": left(0, last_step=39), "b": left(1, last_step=39)}
    anew = (registered(0, 20, node="a"), registered(1, 21, node="b"))
    action = next_action(now(agreed=agreed(course=Directive(paused_at=40)), left=ended, registered=anew))
    assert isinstance(action, FormView)
    assert action.view.fresh
    assert action.agreed.course == Directive()


def test_a_view_is_not_formed_from_an_outdated_vote() -> None:
    """The leader's state lags, and shows that the ranks have still to agree: in the view that it forms all have to say
    again what is good, and those who train already never do. The newcomer waits for 600 s."""
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
