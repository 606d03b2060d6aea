"""What operators want next, a change or a command: the plan for it, or why there is none. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from instep.command_kinds import COMMAND_KINDS
from instep.protocol import commands, membership, recovery
from instep.protocol.actions import (
    MAX_COLLECTED,
    MAX_SCHEMAS_COLLECTED,
    CollectGarbage,
    DeclineCommands,
    LeaderAction,
    OpenPlan,
    RejectValues,
)
from instep.protocol.commands import PendingCommand
from instep.protocol.desired import (
    NextChange,
    next_change,
    pending_revisions,
    settled_rejections,
    signed_rejection,
)
from instep.protocol.records import (
    Agreed,
    Change,
    Directive,
    Plan,
    Rejected,
    View,
    WorkerId,
)
from instep.protocol.situation import Situation
from instep.scalar import Scalar


def is_settled(now: Situation) -> bool:
    """Whether a new plan may be opened: the plan before is aborted, or every running node has applied it.

    At any time at most one committed gate is therefore ahead of any rank, and one `previous` in `state/agreed`
    suffices.
    """
    if now.plan is None or now.view is None:
        return True
    if now.decision is None:
        return False
    if not now.decision.commit:
        return True
    if now.agreed is not None and now.plan.number <= now.agreed.began:
        return True  # nothing has been committed since the last fresh start
    return membership.active_nodes(now.view, now.left) <= set(now.receipts) | _said(now, now.view, now.plan)


def _said(now: Situation, view: View, plan: Plan) -> set[str]:
    """Nodes whose ranks have all reported, since etcd's history went back, that they know of the plan's commit: their
    receipts may be lost and are not written again. A rank that has not reached the plan's gate promises no other plan
    before it has."""
    if now.epoch is None or not now.epoch.settled or plan.number > now.epoch.plan:
        return set()
    number = now.epoch.number
    said = [item.member for item in now.registered if item.member.epoch == number]
    know = {member.worker for member in said if member.head is not None and member.head.plan >= plan.number}
    active = membership.active_ranks(view, now.left)
    return {
        node
        for node, members in view.nodes.items()
        if all(
            WorkerId(rank, incarnation) in know
            for rank, incarnation in zip(members.ranks, members.incarnations, strict=True)
            if rank in active
        )
    }


def about_intents(now: Situation) -> LeaderAction | None:
    """The action for the oldest intent of an operator, a change or a command."""
    if now.view is None or now.agreed is None:
        return None
    if not membership.has_entered(now.view, now.entered, now.registered, now.left):
        return None
    if not is_settled(now):
        return None
    refused = _refused_by_workers(now)
    if refused:
        return RejectValues(refused)
    urgent = commands.oldest_urgent(now.pending_commands)
    if urgent is not None:
        return _about_command(now, urgent, now.agreed.directive)
    unacceptable = commands.unacceptable(now.pending_commands)
    if unacceptable:
        return DeclineCommands(unacceptable)
    wanted = next_change(now.desired, now.agreed.values, now.schema, now.rejected)
    if wanted is not None and wanted.rejections:
        return RejectValues(tuple(signed_rejection(item, now.changes.get(item.revision)) for item in wanted.rejections))
    pending = commands.oldest(now.pending_commands)
    if pending is not None and (wanted is None or pending.revision < wanted.revision):
        return _about_command(now, pending, now.agreed.directive)
    action = _about_change(now, wanted) if wanted is not None else None
    return action or _collect_garbage(now, now.agreed)


def _about_change(now: Situation, wanted: NextChange) -> LeaderAction | None:
    gate = _next_gate(now)
    if gate is None:
        return None
    change = now.changes.get(wanted.revision)
    return _opened(now, _plan(now, gate, wanted.revision, wanted.values, change))


def _about_command(now: Situation, pending: PendingCommand, directive: Directive) -> LeaderAction | None:
    left = _somebody_left(now)
    why = _refusal_of(now, pending) or commands.why_not(pending, directive, now.manifests, somebody_left=left)
    if why is not None or pending.command is None:
        return DeclineCommands(((pending.id, commands.declined(pending, why or "")),))
    gate = _next_gate(now)
    if gate is None:
        return None
    command = pending.command
    loads = COMMAND_KINDS[command.kind].argument == "checkpoint"
    back_to = now.manifests.get(command.name or "") if loads else None
    continues_at = back_to.step + 1 if back_to is not None else None
    plan = replace(
        _plan(now, gate, pending.revision, {}, None),
        kind=command.kind,
        name=command.name,
        directive=commands.directive_after(command, gate, directive, continues_at=continues_at),
        checkpoint=back_to,
        author=command.author,
        reason=command.reason,
        change_id=pending.id,
    )
    return _opened(now, plan)


def _opened(now: Situation, plan: Plan) -> OpenPlan:
    """Plan numbers continue after every number that a node has reported, even if etcd has lost it."""
    newest = now.plan.number if now.plan is not None else 0
    return OpenPlan(plan, follows=None if newest == plan.number - 1 else newest)


def _refusal_of(now: Situation, pending: PendingCommand) -> str | None:
    """Why a worker refused the newest plan, if that was for this command."""
    if now.plan is None or now.decision is None or not now.decision.refused or now.plan.change_id != pending.id:
        return None
    return "; ".join(f"{name}: {reason}" for name, reason in now.decision.refused.items())


def _somebody_left(now: Situation) -> bool:
    return now.view is not None and any(left.view == now.view.number and left.ranks for left in now.left.values())


def _next_gate(now: Situation) -> int | None:
    """The gate of the next plan; None while a rank is missing or no step is known, and the intent waits.

    While the run is paused, all ranks wait before one step, and that step is the gate. If a rank has left after that
    step there is no gate: each plan would be aborted at once and opened again without end.
    """
    assert now.view is not None
    assert now.agreed is not None
    if membership.missing_ranks(now.view, now.registered, now.left):
        return None
    paused_at = now.agreed.directive.paused_at
    if paused_at is not None:
        return paused_at if membership.last_step_left(now.view, now.left) < paused_at else None
    if now.progress.step is None:
        return None
    late = (now.decision.step or 0) if now.decision else 0
    return max(now.progress.step, late, membership.last_step_left(now.view, now.left)) + now.progress.margin_steps


def _collect_garbage(now: Situation, agreed: Agreed) -> CollectGarbage | None:
    rejections = settled_rejections(now.desired, agreed.values, now.schema, now.rejected)
    open_revisions = pending_revisions(now.desired, agreed.values, now.schema, now.rejected)
    changes = tuple(change.id for revision, change in now.changes.items() if revision not in open_revisions)
    declined = commands.outdated(now.declined)
    refusals, schemas = now.outdated_refusals, now.outdated_schemas[:MAX_SCHEMAS_COLLECTED]
    if not (rejections or changes or declined or refusals or schemas):
        return None
    # No more than etcd takes in one transaction; the rest follows.
    return CollectGarbage(
        rejections[:MAX_COLLECTED], changes[:MAX_COLLECTED], declined[:MAX_COLLECTED], refusals[:MAX_COLLECTED], schemas
    )


def _plan(now: Situation, gate: int, revision: int, values: Mapping[str, Scalar], change: Change | None) -> Plan:
    assert now.view is not None
    assert now.agreed is not None
    return Plan(
        number=recovery.last_number(now) + 1,
        parent=now.agreed.digest,
        epoch=recovery.number_of(now.epoch),
        view=now.view.number,
        gate=gate,
        values=dict(values),
        previous={name: now.agreed.values.get(name) for name in values},
        revision=revision,
        author=change.author if change else None,
        reason=change.reason if change else None,
        change_id=change.id if change else None,
    )


def _refused_by_workers(now: Situation) -> tuple[Rejected, ...]:
    """Rejections of values that a worker refused in the newest plan, unless they were written again since."""
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
