"""The protocol with one rule broken at a time. The machine must notice each, or its silence would mean nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

from instep.agent import effects
from instep.agent.heads import Heads
from instep.agent.reception import Reception
from instep.agent.worker import LocalWorker
from instep.coordination import leading, membership, recovery, transactions
from instep.coordination.actions import Action, Commit, FormView
from instep.coordination.chain import Found, Promised, Unknown, verdict
from instep.coordination.node import NodeAction, NodeAgreement, WriteAck
from instep.coordination.records import Ack, Agreed, Decision, View
from instep.coordination.situation import Situation
from instep.coordination.transactions import Txn
from instep.wire import Message
from instep.worker.agreement import Agreement
from instep.worker.course import Course
from instep.worker.gate import Answer, Apply, Gate, Promise, Wait

Mutant = Callable[[], contextlib.AbstractContextManager[Any]]


def commit_without_all_acks() -> Any:
    real = leading._about_open_plan

    def hasty(now: Situation) -> Action | None:
        action = real(now)
        if action is None and now.plan is not None and now.decision is None and now.acked:
            return Commit(now.plan, leading._agreed_after(now, now.plan))
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
    real = Gate.hear_plan

    def always(self: Gate, number: int, gate: int, values: Mapping[str, Any], next_step: int) -> Answer:
        return real(self, number, gate, values, min(next_step, gate))

    return mock.patch.object(Gate, "hear_plan", always)


def promise_two_gates() -> Any:
    """The second promise takes the first one's place, as if that were settled."""
    real = Gate.hear_plan

    def greedy(self: Gate, number: int, gate: int, values: Mapping[str, Any], next_step: int) -> Answer:
        answer = real(self, number, gate, values, next_step)
        if answer is Answer.LATER and self._promise is not None:
            self._hold(Promise(number, gate, {**self._promise.values, **values}))
            return Answer.ARMED
        return answer

    return mock.patch.object(Gate, "hear_plan", greedy)


@contextlib.contextmanager
def who_left_counts_as_armed() -> Iterator[None]:
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

    def form_view(now: Situation, group: membership.Group) -> FormView:
        return replace(form(now, group), abort_plan=None)

    def for_action(action: Action, *rest: Any) -> Txn:
        made = txn(action, *rest)
        if isinstance(action, Commit):
            return Txn(tuple(item for item in made.compares if "state/view" not in item.text), made.then)
        return made

    def about_open_plan(now: Situation) -> Action | None:
        if now.plan is not None and now.view is not None and now.plan.view != now.view.number:
            return open_plan(replace(now, view=now.view.model_copy(update={"number": now.plan.view})))
        return open_plan(now)

    from instep.coordination import leadership

    with (
        mock.patch.object(leading, "_form_view", form_view),
        mock.patch.object(leading, "_about_open_plan", about_open_plan),
        mock.patch.object(leadership, "for_action", for_action),
    ):
        yield


def newcomers_ignore_the_gate() -> Any:
    def ignore(self: Agreement[Any], step: int) -> list[Message]:
        self._start = None
        return self.hear_postponed(step)

    return mock.patch.object(Agreement, "begin", ignore)


def forget_the_previous_values() -> Any:
    real = leading._form_view

    def form_view(now: Situation, group: membership.Group) -> FormView:
        action = real(now, group)
        if action.view.fresh:
            return action
        gone = {"gate": None, "previous": None}
        start = action.view.start.model_copy(update=gone)
        return replace(
            action, view=action.view.model_copy(update={"start": start}), agreed=action.agreed.model_copy(update=gone)
        )

    return mock.patch.object(leading, "_form_view", form_view)


def no_fence_around_the_newest_agreed() -> Any:
    """A view is formed from an `agreed` that a commit has replaced meanwhile."""
    real = transactions.for_action

    def for_action(action: Action, *rest: Any) -> Txn:
        made = real(action, *rest)
        if isinstance(action, FormView):
            return Txn(tuple(item for item in made.compares if "state/agreed" not in item.text), made.then)
        return made

    from instep.coordination import leadership

    return mock.patch.object(leadership, "for_action", for_action)


def commit_without_the_mark() -> Any:
    """A plan is committed although a rank, with no space to write an abort, has made sure that it is not."""
    real = transactions.for_action

    def for_action(action: Action, *rest: Any) -> Txn:
        made = real(action, *rest)
        return Txn(tuple(item for item in made.compares if "state/open/" not in item.text), made.then)

    from instep.coordination import leadership

    return mock.patch.object(leadership, "for_action", for_action)


def newcomers_ignore_the_course() -> Any:
    """Who joins a run that is paused, or about to stop, trains on."""
    real = Agreement.start

    def start(self: Agreement[Any], document: Mapping[str, Any], *rest: Any) -> None:
        real(self, {**document, "course": {}}, *rest)

    return mock.patch.object(Agreement, "start", start)


def a_course_holds_when_it_is_promised() -> Any:
    """A rank does not wait for the decision to pause, to stop or to save."""
    real = Agreement.hear_plan

    def hear_plan(self: Agreement[Any], message: Message, step: int) -> list[Message]:
        answers = real(self, message, step)
        if any(answer["t"] == "armed" for answer in answers) and message.get("course"):
            self.course = Course.of(message["course"])
        return answers

    return mock.patch.object(Agreement, "hear_plan", hear_plan)


@contextlib.contextmanager
def etcd_is_the_authority() -> Iterator[None]:
    """What etcd holds after its history went back counts, whatever the ranks hold, and newcomers wait for nobody."""

    def never(now: Situation) -> bool:
        return False

    def may_start(now: Situation, group: membership.Group) -> bool:
        return True

    def may_enter(self: Reception, worker: LocalWorker, view: View) -> Agreed | None:
        return self._state.agreed

    with (
        mock.patch.object(recovery, "is_under_way", never),
        mock.patch.object(leading, "_can_start", may_start),
        mock.patch.object(Reception, "_may_enter", may_enter),
    ):
        yield


@contextlib.contextmanager
def abort_whatever_has_the_number() -> Iterator[None]:
    """An abort at a gate asks neither whether the plan is the promised one, nor for the epoch."""

    def guess(promised: Promised, found: Found) -> Decision | Unknown:
        return found.decision if found.decision is not None else Unknown.OPEN

    certain = property(lambda self: True)
    with mock.patch.object(effects, "verdict", guess), mock.patch.object(Heads, "is_certain", certain):
        yield


@contextlib.contextmanager
def a_refused_plan_is_named_as_the_one_before_it() -> Iterator[None]:
    """A worker that waits at the gate of a plan it refused names the digest of the plan that it promised before."""
    hear_plan = Agreement.hear_plan

    def hear(self: Agreement[Any], message: Message, step: int) -> list[Message]:
        before = self._told
        answers = hear_plan(self, message, step)
        if any(answer["t"] == "refused" for answer in answers):
            self._told = before
        return answers

    def committed(promised: Promised, found: Found) -> Decision | Unknown:
        if found.agreed is not None and found.agreed.digest == promised.digest:
            return Decision(commit=True, by="leader")
        return verdict(promised, found)

    with mock.patch.object(Agreement, "hear_plan", hear), mock.patch.object(effects, "verdict", committed):
        yield


LOCKSTEP: dict[str, Mutant] = {
    mutant.__name__: mutant
    for mutant in (
        pass_the_gate_undecided,
        promise_too_late,
        newcomers_ignore_the_gate,
        forget_the_previous_values,
        view_leaves_the_plan_open_and_commit_ignores_the_view,
        promise_two_gates,
        no_fence_around_the_newest_agreed,
        commit_without_all_acks,
        acknowledge_before_all_are_armed,
    )
}
DRIFTING: dict[str, Mutant] = {
    mutant.__name__: mutant
    for mutant in (
        commit_without_all_acks,
        acknowledge_before_all_are_armed,
        pass_the_gate_undecided,
        promise_too_late,
        who_left_counts_as_armed,
        commit_without_the_mark,
    )
}
