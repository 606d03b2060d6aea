"""What the leader does next. Pure: a situation in, one action out; the caller carries it out and asks again.

Every action becomes one guarded txn (see transactions.py), so a leader that has been replaced without knowing it can
decide what it likes: etcd refuses it. The protocol and its proof are in docs/protocol/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from instep.coordination import assembly, attempts, commands, membership, resuming
from instep.coordination.assembly import LetThrough, Released
from instep.coordination.attempts import Reported
from instep.coordination.commands import Order
from instep.coordination.desired import (
    Desired,
    Wanted,
    next_change,
    pending_revisions,
    settled_rejections,
    start_values,
)
from instep.coordination.membership import Registered
from instep.coordination.records import (
    Agreed,
    Arrivals,
    Attempts,
    Change,
    Course,
    Decision,
    Declined,
    Forming,
    Left,
    Manifest,
    Plan,
    Pointer,
    Receipt,
    Refused,
    Rejected,
    Resume,
    Snapshot,
    Verified,
    View,
    format_ranks,
)
from instep.coordination.schema import Schema
from instep.coordination.trial import Trial

MAX_TIDIED = 30
"""Records of a kind deleted by one txn; etcd allows 128 operations."""
PLAN_TIMEOUT_S = 60.0
"""A plan nobody decides in this time, or in three times what its gate should take, is aborted and made anew."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far this node's own workers are: `step` is the highest one started, None before the first boundary."""

    step: int | None = None
    step_time_s: float = 0.0
    margin_steps: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that the leader's decision looks at."""

    view: View | None = None
    agreed: Agreed | None = None
    registered: tuple[Registered, ...] = ()
    left: Mapping[str, Left] = field(default_factory=dict)
    plan: Plan | None = None
    decision: Decision | None = None
    plan_age_s: float = 0.0
    open: bool = True
    """Whether the newest plan's mark stands, without which it cannot be committed."""
    acked: frozenset[str] = frozenset()
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    desired: Mapping[str, Desired] = field(default_factory=dict)
    changes: Mapping[int, Change] = field(default_factory=dict)
    orders: tuple[Order, ...] = ()
    """Commands that wait to be carried out."""
    declined: Mapping[str, int] = field(default_factory=dict)
    """Revision of each declined command that is still kept, by its id."""
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    """Committed checkpoints by id, where a decision looks at them."""
    pointer: Pointer | None = None
    resume: Resume | None = None
    resume_is_newer: bool = False
    """What the ranks have agreed to go on from was written after the newest checkpoint."""
    verified: Mapping[str, Verified] = field(default_factory=dict)
    rejected: Mapping[str, Rejected] = field(default_factory=dict)
    schemas: Mapping[str, str] = field(default_factory=dict)
    schema: Schema = field(default_factory=lambda: Schema(None))
    lasting_strangers: frozenset[str] = frozenset()
    """Incarnations that have disagreed with the rest for longer than a lease lives."""
    progress: Progress = Progress()
    forming: Forming | None = None
    lost: Mapping[str, str] = field(default_factory=dict)
    """Keys of the run's state that somebody has deleted while it lives, and what they held."""
    run: str = ""
    attempts: Attempts = field(default_factory=Attempts)
    reports: tuple[Reported, ...] = ()
    """How ranks have failed, as their nodes say."""
    went_on: bool = False
    """Whether the ranks of the view have run a step together, as far as this leader has seen."""
    released: Mapping[str, Released] = field(default_factory=dict)
    arrivals: Mapping[str, Arrivals] = field(default_factory=dict)
    """Who waits at barriers, by node."""
    outdated_refusals: tuple[str, ...] = ()
    """Incarnations under which a refusal is kept that concerns nobody any more."""


@dataclass(frozen=True, slots=True)
class Restore:
    """Writes what was deleted as it was; refused for a key that is there again."""

    lost: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FormView:
    view: View
    agreed: Agreed
    schema: Schema
    rejections: tuple[Rejected, ...]
    abort_plan: int | None
    """An undecided plan of the view before: its abort is part of the same txn, so it can no longer be committed."""
    trial: Trial | None = None
    """To be tried by a worker of the view first."""
    at: str | None = None
    """Wall clock, for people only."""
    attempts: Attempts | None = None
    """What is known of failures then; None when nothing is new."""


@dataclass(frozen=True, slots=True)
class Refuse:
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True)
class TurnAway:
    """Newcomers of a run that has failed too often. Refused when somebody has cleared the count since."""

    refused: tuple[Refused, ...]
    attempts: Attempts | None
    """What is known of failures then; None when nothing is new."""


@dataclass(frozen=True, slots=True)
class OpenPlan:
    plan: Plan


@dataclass(frozen=True, slots=True)
class Commit:
    plan: Plan
    agreed: Agreed


@dataclass(frozen=True, slots=True)
class Abort:
    number: int
    decision: Decision


@dataclass(frozen=True, slots=True)
class Reject:
    rejections: tuple[Rejected, ...]


@dataclass(frozen=True, slots=True)
class Decline:
    """A command that is not carried out."""

    id: str
    declined: Declined


@dataclass(frozen=True, slots=True)
class Tidy:
    """Records that speak of values which no longer stand, or that are done with."""

    rejections: tuple[str, ...]
    changes: tuple[str, ...]
    declined: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ask:
    """Which checkpoint the ranks are asked about next, or all go on from."""

    resume: Resume


@dataclass(frozen=True, slots=True)
class Announce:
    """Tells those who wait which ranks are missing."""

    forming: Forming


Action = (
    Announce
    | Ask
    | FormView
    | LetThrough
    | Refuse
    | TurnAway
    | OpenPlan
    | Commit
    | Abort
    | Decline
    | Reject
    | Restore
    | Tidy
)


def next_action(now: Situation) -> Action | None:
    """The one thing to do next, the most urgent first; None when all is as it should be."""
    if now.lost:
        return Restore(dict(now.lost))
    about_all = (_about_members, _about_open_plan, _about_resuming, _about_barriers, _about_wishes)
    return next((action for about in about_all if (action := about(now)) is not None), None)


def is_settled(now: Situation) -> bool:
    """True when a new plan may be opened: the one before is aborted, or applied by every node that still runs.

    So at any time at most one committed gate lies ahead of anybody, and one `previous` in `state/agreed` suffices.
    """
    if now.plan is None or now.view is None:
        return True
    if now.decision is None:
        return False
    if not now.decision.commit:
        return True
    if now.agreed is not None and now.plan.number <= now.agreed.began:
        return True  # nothing has been committed since the run began anew
    return membership.active_nodes(now.view, now.left) <= set(now.receipts)


def _about_members(now: Situation) -> Action | None:
    group = membership.next_group(now.view, now.registered)
    if group is not None and not (group.schema_digest in now.schemas and _can_start(now, group)):
        group = None
    counted = attempts.counted(_past(now), group)
    news = counted if counted != now.attempts else None
    away = attempts.turned_away(now.view, now.registered, counted, now.run)
    if away:
        return TurnAway(away, news)
    if group is not None:
        return replace(_form_view(now, group), attempts=news)
    reasons = membership.strangers(now.view, now.registered)
    refused = tuple(
        Refused(incarnation=item.member.incarnation, rank=item.member.rank, reason=reasons[item.member.incarnation])
        for item in now.registered
        if item.member.incarnation in reasons and item.member.incarnation in now.lasting_strangers
    )
    if refused:
        return Refuse(refused)
    return _announce(now)


def _can_start(now: Situation, group: membership.Group) -> bool:
    """Not when some have trained and nobody knows with which values: newcomers would start with others."""
    return now.agreed is not None or membership.is_fresh(now.view, group)


def _past(now: Situation) -> attempts.Past:
    return attempts.Past(
        view=now.view,
        left=now.left,
        stopping=now.agreed is not None and now.agreed.course.ends_at is not None,
        registered=now.registered,
        reports=now.reports,
        attempts=now.attempts,
        went_on=now.went_on,
    )


def _announce(now: Situation) -> Announce | None:
    forming = next(iter(membership.groups(now.registered)), None)
    if forming is None or forming.complete:
        return None
    news = Forming(world_size=forming.world_size, missing=format_ranks(forming.missing()))
    return Announce(news) if news != now.forming else None


def _form_view(now: Situation, group: membership.Group) -> FormView:
    schema = Schema.decode(now.schemas[group.schema_digest])
    fresh = membership.is_fresh(now.view, group)
    last_plan = now.plan.number if now.plan else 0
    number = max(now.view.number if now.view else 0, *(item.member.view for item in group.by_rank.values())) + 1
    rejections: tuple[Rejected, ...] = tuple(now.rejected.values())
    trial: Trial | None = None
    if fresh or now.agreed is None:
        start = start_values(now.desired, now.agreed.values if now.agreed else None, schema, now.rejected)
        ended = now.view is not None and not membership.active_ranks(now.view, now.left)
        course = commands.course_of_fresh_view(now.agreed.course, ended=ended) if now.agreed else Course()
        snapshot = Snapshot(values=start.values, plan=last_plan, course=course, origin=number)
        rejections = start.rejections
        trial = start.trial
        revision = _newest_revision(now.desired)
        agreed = Agreed(
            plan=last_plan,
            view=number,
            values=start.values,
            revision=revision,
            course=course,
            origin=number,
            began=last_plan,
        )
    else:
        # The gate goes with it even when everybody has passed it: one that comes back from a checkpoint starts before
        # it again (docs/protocol/, mutant FORGET_PREVIOUS).
        agreed = now.agreed.model_copy(update={"view": number})
        snapshot = Snapshot(
            values=agreed.values,
            plan=agreed.plan,
            gate=agreed.gate,
            previous=agreed.previous,
            course=agreed.course,
            origin=agreed.origin,
            back=agreed.back,
        )
        if snapshot.gate is None and agreed.plan > agreed.began:
            # A command alone has no gate that concerns values, but whoever joins owes its receipt all the same.
            snapshot = snapshot.model_copy(update={"gate": 0, "previous": agreed.values})
    offer = resuming.offer(now.view, fresh, now.pointer, now.resume, resume_is_newer=now.resume_is_newer)
    snapshot = snapshot.model_copy(update={"checkpoint": offer.checkpoint, "vote": offer.vote})
    view = View(
        number=number,
        world_size=group.world_size,
        schema_digest=group.schema_digest,
        nodes=membership.nodes_of(group),
        start=snapshot,
        fresh=fresh,
    )
    undecided = now.plan is not None and now.decision is None
    return FormView(view, agreed, schema, rejections, last_plan if undecided else None, trial)


def _about_resuming(now: Situation) -> Ask | None:
    if now.view is None or not now.verified:
        return None
    poll = resuming.Poll(
        view=now.view, resume=now.resume, verified=now.verified, left=now.left, manifests=now.manifests
    )
    resume = resuming.next_resume(poll)
    return Ask(resume) if resume is not None else None


def _about_barriers(now: Situation) -> LetThrough | None:
    if now.view is None or not now.arrivals:
        return None
    if membership.missing_ranks(now.view, now.registered, now.left):
        return None  # who died there has to be replaced first, also where its node went too and withdrew nothing
    hall = assembly.Hall(view=now.view, left=now.left, released=now.released, arrivals=now.arrivals)
    return assembly.next_release(hall)


def _about_open_plan(now: Situation) -> Action | None:
    if now.plan is None or now.decision is not None or now.view is None:
        return None
    plan = now.plan
    if plan.view != now.view.number:
        return Abort(plan.number, Decision(commit=False, reason="the view changed"))
    passed = membership.last_step_left(now.view, now.left)
    if passed >= plan.gate:
        reason = f"a rank that has left had already run step {passed}"
        return Abort(plan.number, Decision(commit=False, reason=reason, step=passed))
    if not now.open:
        return _without_mark(plan, now.agreed)
    if plan.checkpoint is not None and plan.checkpoint.id not in now.manifests:
        # Its commit would be refused again and again, and ranks that are paused ask for no abort.
        return Abort(plan.number, Decision(commit=False, reason=f"checkpoint {plan.checkpoint.id} was forgotten"))
    if membership.active_nodes(now.view, now.left) <= now.acked:
        return Commit(plan, _agreed_after(now, plan))
    limit_s = max(PLAN_TIMEOUT_S, 3 * now.progress.step_time_s * now.progress.margin_steps)
    if now.plan_age_s > limit_s:
        reason = f"not every rank had answered after {limit_s:.0f} s"
        return Abort(plan.number, Decision(commit=False, reason=reason))
    return None


def _without_mark(plan: Plan, agreed: Agreed | None) -> Abort | None:
    """A rank has gone past its gate while the database was full, and whoever was to record it may have died.

    Nothing is made up for a plan that was committed, or may have been, and whose decision somebody has deleted.
    """
    if agreed is None or agreed.plan >= plan.number:
        return None
    return Abort(plan.number, Decision(commit=False, reason="a rank reached its gate while etcd took no writes"))


def _agreed_after(now: Situation, plan: Plan) -> Agreed:
    if now.agreed is None:
        return Agreed(plan=plan.number, view=plan.view, values=plan.values, gate=plan.gate, previous={})
    before = now.agreed
    news: dict[str, object] = {"plan": plan.number, "view": plan.view, "course": plan.course or before.course}
    if plan.kind == "config":
        values = {**before.values, **plan.values}
        news |= {"values": values, "gate": plan.gate, "previous": dict(before.values), "revision": plan.revision}
    if plan.kind == "restore":
        # The steps before it are run again, with what holds now.
        news |= {"back": plan.number, "gate": None, "previous": None}
    return before.model_copy(update=news)


def _about_wishes(now: Situation) -> Action | None:
    """The oldest of what operators want, a change or a command."""
    if now.view is None or now.agreed is None:
        return None
    if not is_settled(now):
        return None
    tidy = _tidy(now, now.agreed)
    if tidy is not None:
        return tidy
    refused = _refused_by_workers(now)
    if refused:
        return Reject(refused)
    wanted = next_change(now.desired, now.agreed.values, now.schema, now.rejected)
    if wanted is not None and wanted.rejections:
        change = now.changes.get(wanted.revision)
        return Reject(tuple(_signed(item, change) for item in wanted.rejections))
    order = commands.oldest(now.orders)
    if order is not None and (wanted is None or order.revision < wanted.revision):
        return _about_order(now, order, now.agreed.course)
    return _about_change(now, wanted) if wanted is not None else None


def _about_change(now: Situation, wanted: Wanted) -> Action | None:
    gate = _next_gate(now)
    if gate is None:
        return None
    change = now.changes.get(wanted.revision)
    return OpenPlan(_plan(now, gate, wanted.revision, wanted.values, change))


def _about_order(now: Situation, order: Order, course: Course) -> Action | None:
    why = _refusal_of(now, order) or commands.why_not(order, course, now.manifests, somebody_left=_somebody_left(now))
    if why is not None or order.command is None:
        return Decline(order.id, commands.declined(order, why or ""))
    gate = _next_gate(now)
    if gate is None:
        return None
    command = order.command
    back_to = now.manifests.get(command.name or "") if command.kind == "restore" else None
    goes_on = back_to.step + 1 if back_to is not None else None
    plan = _plan(now, gate, order.revision, {}, None).model_copy(
        update={
            "kind": command.kind,
            "name": command.name,
            "course": commands.course_after(command, gate, course, goes_on=goes_on),
            "checkpoint": back_to,
            "author": command.author,
            "reason": command.reason,
            "change_id": order.id,
        }
    )
    return OpenPlan(plan)


def _refusal_of(now: Situation, order: Order) -> str | None:
    """What a worker said to the newest plan, if that was for this command."""
    if now.plan is None or now.decision is None or not now.decision.refused or now.plan.change_id != order.id:
        return None
    return "; ".join(f"{name}: {reason}" for name, reason in now.decision.refused.items())


def _somebody_left(now: Situation) -> bool:
    return now.view is not None and any(left.view == now.view.number and left.ranks for left in now.left.values())


def _next_gate(now: Situation) -> int | None:
    """Of the next plan; None while there is nobody to agree with: what is wanted stays so.

    While the run is paused all ranks stand before one step, and that is the gate.
    """
    assert now.view is not None
    assert now.agreed is not None
    if membership.missing_ranks(now.view, now.registered, now.left):
        return None
    if now.agreed.course.paused_at is not None:
        return now.agreed.course.paused_at
    if now.progress.step is None:
        return None
    late = (now.decision.step or 0) if now.decision else 0
    return max(now.progress.step, late, membership.last_step_left(now.view, now.left)) + now.progress.margin_steps


def _tidy(now: Situation, agreed: Agreed) -> Tidy | None:
    rejections = settled_rejections(now.desired, agreed.values, now.schema, now.rejected)
    open_revisions = pending_revisions(now.desired, agreed.values, now.schema, now.rejected)
    changes = tuple(change.id for revision, change in now.changes.items() if revision not in open_revisions)
    declined = commands.outdated(now.declined)
    refusals = now.outdated_refusals
    if not (rejections or changes or declined or refusals):
        return None
    # No more than etcd takes in one txn; the rest follows.
    return Tidy(rejections[:MAX_TIDIED], changes[:MAX_TIDIED], declined[:MAX_TIDIED], refusals[:MAX_TIDIED])


def _signed(item: Rejected, change: Change | None) -> Rejected:
    if change is None:
        return item
    return item.model_copy(update={"change_id": change.id, "author": change.author, "why": change.reason})


def _plan(now: Situation, gate: int, revision: int, values: Mapping[str, object], change: Change | None) -> Plan:
    assert now.view is not None
    assert now.agreed is not None
    return Plan.model_validate(
        {
            "number": (now.plan.number if now.plan else 0) + 1,
            "view": now.view.number,
            "gate": gate,
            "values": dict(values),
            "previous": {name: now.agreed.values.get(name) for name in values},
            "revision": revision,
            "author": change.author if change else None,
            "reason": change.reason if change else None,
            "change_id": change.id if change else None,
        }
    )


def _refused_by_workers(now: Situation) -> tuple[Rejected, ...]:
    """Rejections due because a worker could not accept the newest plan's values, unless written again since."""
    if now.plan is None or now.decision is None or not now.decision.refused:
        return ()
    blame = ", ".join(now.decision.refused)
    return tuple(
        Rejected(
            name=name,
            value=now.desired[name].text[:200],
            revision=now.plan.revision,
            reason=now.decision.refused.get(name, f"it was written together with {blame}, which was rejected"),
            by="worker",
            change_id=now.plan.change_id,
            author=now.plan.author,
            why=now.plan.reason,
        )
        for name in now.plan.values
        if name in now.desired
        and now.desired[name].revision == now.plan.revision
        and (name not in now.rejected or now.rejected[name].revision != now.plan.revision)
    )


def _newest_revision(desired: Mapping[str, Desired]) -> int:
    return max((item.revision for item in desired.values()), default=0)
