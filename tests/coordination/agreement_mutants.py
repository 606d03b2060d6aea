"""The protocol with one rule broken at a time. The machine must detect each, or its success would prove nothing.

Two of them break a rule that another one repeats, and no schedule is known that shows it: `promise_two_gates` (no
second plan is opened before the first is applied; Spin finds it in docs/protocol), and
`no_fence_around_the_newest_agreed` (a view is formed only while the newest plan is undecided, or followed).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

from instep.agent import leadership, retrying_writer
from instep.agent.heads import Heads
from instep.agent.worker_sessions import WorkerSessions
from instep.agent.workers import LocalWorker, Workers
from instep.protocol import attempts, barriers, checkpoints, leading, membership, recovery, resuming, transactions
from instep.protocol.actions import CommitPlan, FormView, LeaderAction
from instep.protocol.chain import Promised, StoredPlan, Unknown, verdict
from instep.protocol.node import NodeAction, NodeAgreement, WriteAck
from instep.protocol.records import (
    Ack,
    Agreed,
    Decision,
    Directive,
    NodeMembers,
    Plan,
    RankFailure,
    Resume,
    Snapshot,
    View,
)
from instep.protocol.situation import Situation
from instep.protocol.transactions import Txn
from instep.wire.messages import FromWorker, PlanArmed, PlanRefused, ProposePlan
from instep.worker.agreement import Agreement
from instep.worker.command_handlers import CommandHandlers
from instep.worker.gate import Apply, Gate, Promise, PromiseAnswer, Wait

Mutant = Callable[[], contextlib.AbstractContextManager[Any]]


def commit_without_all_acks() -> Any:
    real = leading._about_open_plan

    def hasty(now: Situation) -> LeaderAction | None:
        action = real(now)
        if action is None and now.plan is not None and now.decision is None and now.acked:
            return CommitPlan(now.plan, leading._agreed_after(now, now.plan))
        return action

    return mock.patch.object(leading, "_about_open_plan", hasty)


def pass_the_gate_undecided() -> Any:
    real = Gate.at

    def careless(self: Gate, step: int) -> Wait | Apply | None:
        due = real(self, step)
        return None if isinstance(due, Wait) else due

    return mock.patch.object(Gate, "at", careless)


def acknowledge_before_all_are_armed() -> Any:
    real = NodeAgreement._answer

    def eager(self: NodeAgreement) -> list[NodeAction]:
        actions = real(self)
        if not actions and self.plan is not None and self.decision is None and self.armed:
            return [WriteAck(self.plan.number, Ack(node=self.node, ranks=tuple(self.armed)))]
        return actions

    return mock.patch.object(NodeAgreement, "_answer", eager)


def promise_too_late() -> Any:
    real = Gate.on_plan

    def always(self: Gate, number: int, gate: int, values: Mapping[str, Any], next_step: int) -> PromiseAnswer:
        return real(self, number, gate, values, min(next_step, gate))

    return mock.patch.object(Gate, "on_plan", always)


def promise_two_gates() -> Any:
    """The second promise replaces the first one, as if that plan were decided."""
    real = Gate.on_plan

    def greedy(self: Gate, number: int, gate: int, values: Mapping[str, Any], next_step: int) -> PromiseAnswer:
        answer = real(self, number, gate, values, next_step)
        if answer is PromiseAnswer.LATER and self._promise is not None:
            self._hold(Promise(number, gate, {**self._promise.values, **values}))
            return PromiseAnswer.ARMED
        return answer

    return mock.patch.object(Gate, "on_plan", greedy)


@contextlib.contextmanager
def a_worker_that_left_counts_as_armed() -> Iterator[None]:
    def never(view: object, left: object) -> int:
        return -1

    real = NodeAgreement.on_left

    def forgetful(self: NodeAgreement, rank: int, last_step: int) -> list[NodeAction]:
        return real(self, rank, -1)

    with mock.patch.object(membership, "last_step_left", never), mock.patch.object(NodeAgreement, "on_left", forgetful):
        yield


@contextlib.contextmanager
def view_leaves_the_plan_open_and_commit_ignores_the_view() -> Iterator[None]:
    form, txn, open_plan = leading._form_view, transactions.for_action, leading._about_open_plan

    def form_view(now: Situation, group: membership.WorkerGroup) -> FormView:
        return replace(form(now, group), abort_plan=None)

    def for_action(action: LeaderAction, *rest: Any) -> Txn:
        made = txn(action, *rest)
        if isinstance(action, CommitPlan):
            return Txn(tuple(item for item in made.compares if "state/view" not in item.text), made.then)
        return made

    def about_open_plan(now: Situation) -> LeaderAction | None:
        if now.plan is not None and now.view is not None and now.plan.view != now.view.number:
            return open_plan(replace(now, view=now.view.model_copy(update={"number": now.plan.view})))
        return open_plan(now)

    with (
        mock.patch.object(leading, "_form_view", form_view),
        mock.patch.object(leading, "_about_open_plan", about_open_plan),
        mock.patch.object(leadership, "for_action", for_action),
    ):
        yield


def newcomers_ignore_the_gate() -> Any:
    def ignore(self: Agreement[Any], step: int) -> list[FromWorker]:
        self._start = None
        return self.answer_postponed(step)

    return mock.patch.object(Agreement, "begin", ignore)


def forget_the_previous_values() -> Any:
    real = leading._form_view

    def form_view(now: Situation, group: membership.WorkerGroup) -> FormView:
        action = real(now, group)
        if action.view.fresh:
            return action
        gone = {"gate": None, "previous": None}
        start = replace(action.view.start, **gone)
        return replace(
            action, view=action.view.model_copy(update={"start": start}), agreed=replace(action.agreed, **gone)
        )

    return mock.patch.object(leading, "_form_view", form_view)


def no_fence_around_the_newest_agreed() -> Any:
    """A view is formed from an `agreed` that a commit has replaced."""
    return _without_compares(FormView, "state/agreed")


def commit_without_the_mark() -> Any:
    """A plan is committed although a rank that had no space to write an abort has ruled that out."""
    return _without_compares(CommitPlan, "state/open/")


def newcomers_ignore_the_directive() -> Any:
    """A worker that joins a run that is paused, or about to stop, trains."""
    real = Agreement.start

    def start(self: Agreement[Any], start: Snapshot, *rest: Any) -> None:
        real(self, replace(start, directive=Directive()), *rest)

    return mock.patch.object(Agreement, "start", start)


def a_directive_applies_when_it_is_promised() -> Any:
    """A rank does not wait for the decision to pause, to stop or to save."""
    real = Agreement.on_plan

    def on_plan(self: Agreement[Any], message: ProposePlan, step: int) -> list[FromWorker]:
        answers = real(self, message, step)
        if any(isinstance(answer, PlanArmed) for answer in answers) and message.plan.directive is not None:
            self.directive = message.plan.directive
        return answers

    return mock.patch.object(Agreement, "on_plan", on_plan)


@contextlib.contextmanager
def etcd_is_the_authority() -> Iterator[None]:
    """After the history went back, etcd overrides what the ranks hold, and newcomers do not wait."""

    def never(now: Situation) -> bool:
        return False

    def may_start(now: Situation, group: membership.WorkerGroup) -> bool:
        return True

    def may_enter(self: WorkerSessions, worker: LocalWorker, view: View) -> Agreed | None:
        return self._state.agreed

    with (
        mock.patch.object(recovery, "is_under_way", never),
        mock.patch.object(leading, "_can_start", may_start),
        mock.patch.object(WorkerSessions, "_may_enter", may_enter),
    ):
        yield


@contextlib.contextmanager
def abort_any_plan_of_the_number() -> Iterator[None]:
    """An abort at a gate compares neither the plan with the promised one nor the epoch."""

    def guess(promised: Promised, found: StoredPlan) -> Decision | Unknown:
        return found.decision if found.decision is not None else Unknown.OPEN

    certain = property(lambda self: True)
    with mock.patch.object(retrying_writer, "verdict", guess), mock.patch.object(Heads, "is_certain", certain):
        yield


@contextlib.contextmanager
def a_refused_plan_is_named_like_the_plan_before_it() -> Iterator[None]:
    """A worker that waits at the gate of a plan it refused names the digest of the plan that it promised before."""
    on_plan = Agreement.on_plan

    def hear(self: Agreement[Any], message: ProposePlan, step: int) -> list[FromWorker]:
        before = self._told
        answers = on_plan(self, message, step)
        if any(isinstance(answer, PlanRefused) for answer in answers):
            self._told = before
        return answers

    def committed(promised: Promised, found: StoredPlan) -> Decision | Unknown:
        if found.agreed is not None and found.agreed.digest == promised.digest:
            return Decision(commit=True, by="leader")
        return verdict(promised, found)

    with mock.patch.object(Agreement, "on_plan", hear), mock.patch.object(retrying_writer, "verdict", committed):
        yield


def a_node_pairs_ranks_and_incarnations_wrongly() -> Any:
    """The incarnations of a node are in another order than its ranks."""
    real = membership.nodes_of

    def nodes_of(group: membership.WorkerGroup) -> dict[str, NodeMembers]:
        return {
            node: members.model_copy(update={"incarnations": tuple(sorted(members.incarnations))})
            for node, members in real(group).items()
        }

    return mock.patch.object(membership, "nodes_of", nodes_of)


def a_node_knows_its_workers_by_rank_alone() -> Any:
    """A process of the same rank that is not in the view answers for the one in the view."""

    def in_view(self: Workers, view: View | None, node: str) -> dict[int, LocalWorker]:
        mine = view.nodes.get(node) if view is not None else None
        ranks = mine.ranks if mine is not None else ()
        return {worker.rank: worker for worker in reversed(list(self)) if worker.rank in ranks}

    return mock.patch.object(Workers, "in_view", in_view)


def verified_in_another_view_counts() -> Any:
    real = resuming.next_resume

    def next_resume(situation: resuming.VoteSituation) -> Resume | None:
        number = situation.view.number
        moved = {node: answer.model_copy(update={"view": number}) for node, answer in situation.verified.items()}
        return real(replace(situation, verified=moved))

    return mock.patch.object(resuming, "next_resume", next_resume)


def the_first_to_verify_decides_for_all() -> Any:
    real = resuming.next_resume

    def next_resume(situation: resuming.VoteSituation) -> Resume | None:
        now = resuming.asked(situation.view, situation.resume)
        found = real(situation)
        if found is None and situation.verified and not now.final:
            return now.model_copy(update={"final": True})
        return found

    return mock.patch.object(resuming, "next_resume", next_resume)


def a_refusal_counts_for_the_next_checkpoint_too() -> Any:
    real = resuming.next_resume

    def next_resume(situation: resuming.VoteSituation) -> Resume | None:
        now = resuming.asked(situation.view, situation.resume)
        moved = {
            node: answer.model_copy(update={"id": now.id})
            for node, answer in situation.verified.items()
            if now.id is not None
        }
        return real(replace(situation, verified=moved))

    return mock.patch.object(resuming, "next_resume", next_resume)


def a_failure_of_another_view_counts() -> Any:
    real = attempts._first

    def first(situation: attempts.FailureSituation, view: View, lost: frozenset[int]) -> RankFailure:
        said = [item.failure for item in situation.reports if item.failure.rank in lost]
        return said[0] if said else real(situation, view, lost)

    return mock.patch.object(attempts, "_first", first)


def arrivals_before_the_last_release_count() -> Any:
    def arrived(situation: barriers.BarrierSituation, name: str) -> set[int]:
        waiting = (arrivals.waiting.get(name) for arrivals in barriers._here(situation).values())
        return {rank for item in waiting if item is not None for rank in item.ranks}

    return mock.patch.object(barriers, "_arrived", arrived)


def a_release_counts_for_the_ranks_of_a_later_view() -> Any:
    def is_freed_by(self: barriers.BarrierWait, released: barriers.Released | None) -> bool:
        return released is not None and released.record.number > self.after

    return mock.patch.object(barriers.BarrierWait, "is_freed_by", is_freed_by)


def a_reset_of_the_attempts_is_not_noticed() -> Any:
    return _without_compares(FormView, "attempts")


def a_restore_leaves_the_pointer() -> Any:
    """A restart resumes from the checkpoint that the run was taken back from."""
    real = transactions.for_action

    def for_action(action: LeaderAction, *rest: Any) -> Txn:
        made = real(action, *rest)
        if isinstance(action, CommitPlan):
            return Txn(made.compares, tuple(op for op in made.then if "checkpoints/latest" not in op.text))
        return made

    return _patch_for_action(for_action)


def a_restored_run_keeps_the_gate_of_the_last_change() -> Any:
    real = leading.after

    def after(agreed: Agreed, plan: Plan) -> Agreed:
        kept = {"gate": agreed.gate, "previous": agreed.previous} if plan.kind == "restore" else {}
        return replace(real(agreed, plan), **kept)

    return mock.patch.object(leading, "after", after)


def a_checkpoint_is_restored_though_it_was_forgotten() -> Any:
    real_plan, real = leading._about_open_plan, transactions.for_action

    def about_open_plan(now: Situation) -> LeaderAction | None:
        target = now.plan.checkpoint if now.plan is not None else None
        return real_plan(replace(now, manifests={**now.manifests, target.id: target}) if target is not None else now)

    def for_action(action: LeaderAction, *rest: Any) -> Txn:
        made = real(action, *rest)
        if isinstance(action, CommitPlan):
            return Txn(tuple(item for item in made.compares if "/checkpoints/" not in item.text), made.then)
        return made

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(leading, "_about_open_plan", about_open_plan))
    stack.enter_context(_patch_for_action(for_action))
    return stack


def a_checkpoint_from_before_a_restore_is_resumed() -> Any:
    """A save that was under way during a restore moves the pointer."""
    return mock.patch.object(checkpoints.CheckpointReads, "has_left", return_value=False)


def a_rank_ignores_that_the_run_is_restored() -> Any:
    return mock.patch.object(CommandHandlers, "act", return_value=None)


def _without_compares(kind: type, key: str) -> Any:
    """Actions of that kind do not compare the value of the key."""
    real = transactions.for_action

    def for_action(action: LeaderAction, *rest: Any) -> Txn:
        made = real(action, *rest)
        if isinstance(action, kind):
            return Txn(tuple(item for item in made.compares if key not in item.text), made.then)
        return made

    return _patch_for_action(for_action)


def _patch_for_action(for_action: Callable[..., Txn]) -> Any:
    return mock.patch.object(leadership, "for_action", for_action)
