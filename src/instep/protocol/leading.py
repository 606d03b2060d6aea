"""The leader's next action. Pure: a situation in, one action out; the caller carries it out and asks again.

Each action becomes one guarded transaction (see transactions.py): etcd refuses the actions of a leader that was
replaced without knowing it. The protocol and its proof are in docs/protocol/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from instep.protocol import attempts, barriers, commands, membership, recovery, resuming
from instep.protocol.actions import (
    AbortPlan,
    AnnounceForming,
    CommitPlan,
    FormView,
    LeaderAction,
    MarkEntered,
    OfferCheckpoint,
    RefuseWorkers,
    RejectJoin,
)
from instep.protocol.barriers import ReleaseBarrier
from instep.protocol.chain import after
from instep.protocol.desired import (
    DesiredValue,
    signatures,
    signed,
    signed_rejection,
    start_values,
)
from instep.protocol.dry_run import DryRun
from instep.protocol.intents import about_intents
from instep.protocol.records import (
    Agreed,
    Decision,
    Directive,
    Forming,
    Plan,
    Refused,
    Rejected,
    Snapshot,
    StartChange,
    View,
    format_ranks,
)
from instep.protocol.schema import Schema
from instep.protocol.situation import Situation
from instep.scalar import Scalar

PLAN_TIMEOUT_S = 60.0
"""A plan that is not decided in this time, or in three times the time to its gate, is aborted and opened again."""


def next_action(now: Situation) -> LeaderAction | None:
    """The next action, the most urgent first; None if there is nothing to do."""
    if recovery.is_under_way(now):
        return recovery.next_step(now) or _announce(now)
    about_all = (_about_token, _about_members, _about_open_plan, _about_resuming, _about_barriers, about_intents)
    return next((action for about in about_all if (action := about(now)) is not None), None)


def _about_token(now: Situation) -> LeaderAction | None:
    return recovery.renewed(now)


def _about_members(now: Situation) -> LeaderAction | None:
    group = membership.next_group(now.view, now.registered, outdated=_is_outdated(now))
    if group is not None and not (group.schema_digest in now.schemas and _can_start(now, group)):
        group = None
    counted = attempts.counted(_past(now), group)
    news = counted if counted != now.attempts else None
    away = attempts.rejected_joins(now.view, now.registered, counted, now.run)
    if away:
        return RejectJoin(away, news)
    if group is not None:
        return replace(_form_view(now, group), attempts=news)
    if _may_enter(now):
        return MarkEntered(now.view.number if now.view is not None else 0)
    reasons = membership.mismatched(now.view, now.registered)
    refused = tuple(
        Refused.of([item.member.worker], reasons[item.member.worker])
        for item in now.registered
        if item.member.worker in reasons and item.member.worker in now.long_mismatched
    )
    if refused:
        return RefuseWorkers(refused)
    return _announce(now)


def _may_enter(now: Situation) -> bool:
    if now.view is None or now.entered >= now.view.number or not now.view.start.digest:
        return False
    if _is_outdated(now):
        return False  # its newcomers could not begin, and no other view would be formed
    return membership.has_entered(now.view, now.entered, now.registered, now.left)


def _is_outdated(now: Situation) -> bool:
    """Whether a view whose newcomers have not begun starts with values that are not the newest."""
    view, agreed = now.view, now.agreed
    if view is None or agreed is None or now.entered >= view.number:
        return False
    return bool(view.start.digest) and view.start.digest != agreed.digest


def _can_start(now: Situation, group: membership.WorkerGroup) -> bool:
    """False if some workers have trained and their values are not known: newcomers would start with others. False until
    all are registered in this epoch: an earlier registration may come from the restored history."""
    if any(item.member.epoch < recovery.number_of(now.epoch) for item in group.by_rank.values()):
        return False
    return now.agreed is not None or not membership.staying(now.view, group, now.entered)


def _past(now: Situation) -> attempts.FailureSituation:
    return attempts.FailureSituation(
        view=now.view,
        left=now.left,
        stopping=now.agreed is not None and now.agreed.directive.ends_at is not None,
        registered=now.registered,
        reports=now.reports,
        attempts=now.attempts,
        has_progressed=now.has_progressed,
    )


def _announce(now: Situation) -> AnnounceForming | None:
    forming = next(iter(membership.groups(now.registered, now.view)), None)
    if forming is None or forming.complete:
        return None
    news = Forming(world_size=forming.world_size, missing=format_ranks(forming.missing()))
    return AnnounceForming(news) if news != now.forming else None


def _form_view(now: Situation, group: membership.WorkerGroup) -> FormView:
    schema = Schema.decode(now.schemas[group.schema_digest])
    staying = membership.staying(now.view, group, now.entered)
    fresh = not staying
    known = (now.view.number if now.view else 0, now.epoch.view if now.epoch else 0)
    number = max(*known, *(item.member.view for item in now.registered)) + 1
    rejections: tuple[Rejected, ...] = tuple(now.rejected.values())
    dry_run: DryRun | None = None
    changes: tuple[StartChange, ...] = ()
    if fresh or now.agreed is None:
        restart = membership.is_restart(group)
        start = start_values(
            now.desired,
            now.agreed.values if now.agreed else None,
            schema,
            now.rejected,
            prefer_script=schema.prefers_script and not restart,
        )
        by = signatures(now.changes, now.rejected)
        rejections = tuple(signed_rejection(item, by.get(item.revision)) for item in start.rejections)
        dry_run, changes = start.dry_run, signed(start.changes, by)
        agreed = _agreed_at_start(now, number, start.values)
    else:
        agreed = replace(now.agreed, view=number)
    offer = resuming.offer(now.view, fresh, now.pointer, now.resume, resume_is_newer=now.resume_is_newer)
    snapshot = replace(_snapshot(agreed), checkpoint=offer.checkpoint, vote=offer.vote, digest=agreed.digest)
    view = View(
        number=number,
        world_size=group.world_size,
        schema_digest=group.schema_digest,
        nodes=membership.nodes_of(group),
        versions=membership.mixed_versions(group),
        start=snapshot,
        fresh=fresh,
        staying=format_ranks(staying),
    )
    undecided = now.plan.number if now.plan is not None and now.decision is None else None
    return FormView(view, agreed, schema, rejections, undecided, dry_run, changes=changes)


def _agreed_at_start(now: Situation, number: int, values: Mapping[str, Scalar]) -> Agreed:
    """The agreed values of a fresh view."""
    ended = now.view is not None and not membership.active_ranks(now.view, now.left)
    last_plan = recovery.last_number(now)
    return Agreed(
        plan=last_plan,
        view=number,
        values=dict(values),
        revision=_newest_revision(now.desired),
        directive=commands.directive_of_fresh_view(now.agreed.directive, ended=ended) if now.agreed else Directive(),
        origin=number,
        began=last_plan,
        digest=now.agreed.digest if now.agreed else "",
    ).as_start()


def _snapshot(agreed: Agreed) -> Snapshot:
    """The snapshot that the ranks of a view start with. It includes the gate even if all ranks have passed it: a rank
    that resumes from a checkpoint starts before it again (docs/protocol/, mutant FORGET_PREVIOUS)."""
    snapshot = Snapshot(
        values=agreed.values,
        plan=agreed.plan,
        gate=agreed.gate,
        previous=agreed.previous,
        directive=agreed.directive,
        origin=agreed.origin,
        back=agreed.back,
    )
    if snapshot.gate is None and agreed.plan > agreed.began:
        # A command alone sets no gate for values, but a rank that joins owes its receipt.
        return replace(snapshot, gate=0, previous=agreed.values)
    return snapshot


def _about_resuming(now: Situation) -> OfferCheckpoint | None:
    if now.view is None or not now.verified:
        return None
    situation = resuming.VoteSituation(
        view=now.view, resume=now.resume, verified=now.verified, left=now.left, manifests=now.manifests
    )
    resume = resuming.next_resume(situation)
    return OfferCheckpoint(resume) if resume is not None else None


def _about_barriers(now: Situation) -> ReleaseBarrier | None:
    if now.view is None or not now.arrivals:
        return None
    if membership.missing_ranks(now.view, now.registered, now.left):
        return None  # a dead rank is replaced first, even if its node died too and withdrew nothing
    situation = barriers.BarrierSituation(view=now.view, left=now.left, released=now.released, arrivals=now.arrivals)
    return barriers.next_release(situation)


def _about_open_plan(now: Situation) -> LeaderAction | None:
    if now.plan is None or now.decision is not None or now.view is None:
        return None
    plan = now.plan
    if plan.view != now.view.number:
        return AbortPlan(plan.number, Decision(commit=False, reason="the view changed"))
    passed = membership.last_step_left(now.view, now.left)
    if passed >= plan.gate:
        reason = f"a rank that has left had already run step {passed}"
        return AbortPlan(plan.number, Decision(commit=False, reason=reason, step=passed))
    if not now.open:
        return _without_mark(plan, now.agreed)
    if plan.checkpoint is not None and plan.checkpoint.id not in now.manifests:
        # etcd would refuse its commit each time, and paused ranks ask for no abort.
        return AbortPlan(plan.number, Decision(commit=False, reason=f"checkpoint {plan.checkpoint.id} was forgotten"))
    if membership.active_nodes(now.view, now.left) <= now.acked:
        return CommitPlan(plan, _agreed_after(now, plan))
    limit_s = max(PLAN_TIMEOUT_S, 3 * now.progress.step_time_s * now.progress.margin_steps)
    if now.plan_age_s > limit_s:
        reason = f"not every rank had answered after {limit_s:.0f} s"
        return AbortPlan(plan.number, Decision(commit=False, reason=reason))
    return None


def _without_mark(plan: Plan, agreed: Agreed | None) -> AbortPlan | None:
    """The abort of a plan whose gate a rank passed while the database was full: the agent that should record it may
    have died. None for a plan that was committed, or may have been, and whose decision was deleted."""
    if agreed is None or agreed.plan >= plan.number:
        return None
    return AbortPlan(plan.number, Decision(commit=False, reason="a rank reached its gate while etcd took no writes"))


def _agreed_after(now: Situation, plan: Plan) -> Agreed:
    return after(now.agreed if now.agreed is not None else Agreed(plan=0, view=plan.view, values={}), plan)


def _newest_revision(desired: Mapping[str, DesiredValue]) -> int:
    return max((item.revision for item in desired.values()), default=0)
