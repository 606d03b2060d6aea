"""Each action as one etcd transaction: what must still be true, and what is then written. Pure.

The comparisons enforce the protocol: the leader's token on everything it writes; the view's revision where a view
matters; and the absence of a decision, because of which exactly one decision of each plan is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from instep.etcd import Compare, Op
from instep.protocol.actions import (
    MAX_COLLECTED,
    MAX_DECLINED,
    AbortPlan,
    AnnounceForming,
    CollectGarbage,
    CommitPlan,
    DeclineCommands,
    FormView,
    LeaderAction,
    MarkEntered,
    OfferCheckpoint,
    OpenPlan,
    ProclaimLeader,
    RaiseEpoch,
    RefuseWorkers,
    RejectJoin,
    RejectValues,
    RewriteConfig,
    SettleEpoch,
)
from instep.protocol.barriers import ReleaseBarrier
from instep.protocol.keys import Keys
from instep.protocol.records import (
    Ack,
    Decision,
    Entered,
    Epoch,
    FirstStep,
    Leader,
    Manifest,
    Pointer,
    RankFailure,
    Refused,
    StartOfView,
    Term,
)
from instep.recipes.fence import Fence
from instep.scalar import format_scalar

HISTORY_PLANS = 1000
"""How many plans etcd keeps: opening a plan deletes an old one."""
MAX_REJECTIONS = 60
"""Rejections that one transaction writes; etcd allows 128 operations. Of a larger change only the first are written."""
TERMS_KEPT = 100
"""Leaders kept in the history."""
EPOCHS_KEPT = 100
"""Epochs kept in the history."""
RECEIPTS_KEPT = 20
"""Plans whose receipts are kept: one key per node each, which the leader watches."""
STARTS_KEPT = 200
"""Views whose start is kept for history."""
ACKS_KEPT = 2
"""Plans whose acks are kept: a decided plan needs none."""


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction that may be sent again: each attempt writes the same or nothing."""

    compares: tuple[Compare, ...]
    then: tuple[Op, ...]


@dataclass(frozen=True, slots=True)
class SeenRevisions:
    """Mod revisions of the records that a decision was made from; 0 for a missing key."""

    view: int = 0
    agreed: int = 0
    pointer: int = 0
    attempts: int = 0
    resume: int = 0
    epoch: int = 0


def for_action(action: LeaderAction, keys: Keys, fence: Fence, seen: SeenRevisions) -> Txn:
    """The transaction that carries out an action if the records that it was decided from are unchanged."""
    same_view = Compare.mod_revision(keys.view, "==", seen.view)
    same_epoch = Compare.mod_revision(keys.epoch, "==", seen.epoch)
    match action:
        case RaiseEpoch():
            return _proven_loss(action, keys, seen, (fence.compare(), same_view, _same_agreed(keys, seen)))
        case ProclaimLeader():
            return Txn((fence.compare(), same_epoch), tuple(_proclaimed(keys, action.leader)))
        case RewriteConfig():
            puts = tuple(Op.put(keys.config_of(name), format_scalar(value)) for name, value in action.config.items())
            return Txn((fence.compare(), same_epoch), puts)
        case SettleEpoch():
            return _settle(action, keys, (fence.compare(), same_epoch, _same_agreed(keys, seen)))
        case MarkEntered():
            entered = Entered(view=action.view)
            return Txn((fence.compare(), same_epoch, same_view), (Op.put(keys.entered, entered.encode()),))
        case FormView():
            same_pointer = Compare.mod_revision(keys.latest, "==", seen.pointer)
            same_resume = Compare.mod_revision(keys.resume, "==", seen.resume)
            guards = [fence.compare(), same_epoch, same_view, _same_agreed(keys, seen), same_pointer, same_resume]
            if action.attempts is not None:
                guards.append(_same_attempts(keys, seen))
            return _form_view(action, keys, tuple(guards))
        case OpenPlan():
            return _open_plan(action, keys, (fence.compare(), same_epoch, same_view))
        case CommitPlan():
            return _commit(action, keys, (fence.compare(), same_epoch, same_view))
        case DeclineCommands():
            return _decline(action, keys, fence)
        case OfferCheckpoint():
            done = [Op.delete(keys.verified, prefix=True)] if action.resume.final else []
            return Txn((fence.compare(), same_view), (Op.put(keys.resume, action.resume.encode()), *done))
        case AnnounceForming():
            return Txn((fence.compare(),), (Op.put(keys.forming, action.forming.encode()),))
        case AbortPlan():
            made = abort(keys, action.number, action.decision)
            return Txn((fence.compare(), same_epoch, *made.compares), made.then)
        case RejectValues():
            return Txn(
                (fence.compare(),),
                tuple(
                    Op.put(keys.rejected_of(item.name), item.encode()) for item in action.rejections[:MAX_REJECTIONS]
                ),
            )
        case CollectGarbage():
            return Txn((fence.compare(),), _collected(action, keys))
        case RefuseWorkers():
            return Txn((fence.compare(),), _refusals(action.refused, keys))
        case RejectJoin():
            count = (Op.put(keys.attempts, action.attempts.encode()),) if action.attempts is not None else ()
            same_count = _same_attempts(keys, seen)
            return Txn((fence.compare(), same_view, same_count), (*_refusals(action.refused, keys), *count))
        case ReleaseBarrier():
            same = Compare.mod_revision(keys.barrier(action.name), "==", action.seen)
            then = [Op.put(keys.barrier(action.name), action.release.encode())]
            then += [Op.delete(keys.barrier(name)) for name in action.outdated[:MAX_COLLECTED]]
            return Txn((fence.compare(), same_view, same), tuple(then))


def _decline(action: DeclineCommands, keys: Keys, fence: Fence) -> Txn:
    """Declines the first of them; the rest follows."""
    compares, then = [fence.compare()], []
    for name, item in action.declined[:MAX_DECLINED]:
        # Another command may have been written under this id since.
        compares.append(Compare.mod_revision(keys.command(name), "==", item.revision))
        then += [Op.delete(keys.command(name)), Op.put(keys.declined_of(name), item.encode())]
    return Txn(tuple(compares), tuple(then))


def _collected(action: CollectGarbage, keys: Keys) -> tuple[Op, ...]:
    outdated = [keys.rejected_of(name) for name in action.rejections]
    outdated += [keys.change(change_id) for change_id in action.changes]
    outdated += [keys.declined_of(command_id) for command_id in action.declined]
    outdated += [keys.refused_of(*worker) for worker in action.refusals]
    outdated += [keys.schema_of(digest) for digest in action.schemas]
    return tuple(Op.delete(key) for key in outdated)


def _refusals(refused: tuple[Refused, ...], keys: Keys) -> tuple[Op, ...]:
    """Refuses the first of them; the rest follows."""
    return tuple(Op.put(keys.refused_of(*item.worker), item.encode()) for item in refused[:MAX_COLLECTED])


def abort(keys: Keys, number: int, decision: Decision) -> Txn:
    """Aborts a plan that exists and is not decided. Any node may try; exactly one decision is written."""
    return Txn(
        (Compare.present(keys.plan(number)), _undecided(keys, number)),
        (Op.put(keys.decision(number), decision.encode()), Op.delete(keys.open_mark(number))),
    )


def acknowledge(keys: Keys, number: int, ack: Ack) -> Txn:
    """Create-only: an ack is never withdrawn or changed."""
    key = keys.ack(number, ack.node)
    return Txn((Compare.absent(key),), (Op.put(key, ack.encode()),))


def write_failure(keys: Keys, node: str, failure: RankFailure) -> Txn:
    """Create-only: a node reports its first failed rank in a view; others may have exited because of it."""
    key = keys.failure(failure.view, node)
    return Txn((Compare.absent(key),), (Op.put(key, failure.encode()),))


def write_first_step(keys: Keys, view: int, first: FirstStep) -> Txn:
    """Written once for each fresh view: only these have a start record."""
    key = keys.first_step_of(view)
    return Txn((Compare.present(keys.start_of(view)), Compare.absent(key)), (Op.put(key, first.encode()),))


def raise_epoch(keys: Keys, seen: int, epoch: Epoch) -> Txn:
    """Begins the next epoch, and records it in the history. `seen` is the mod revision of `state/epoch` that `epoch`
    was made from, 0 if there was none: of all attempts exactly one succeeds. The leader then proclaims itself again."""
    then = [Op.put(keys.epoch, epoch.encode()), Op.put(keys.epoch_of(epoch.number), epoch.encode())]
    if epoch.number > EPOCHS_KEPT:
        then.append(Op.delete(keys.epoch_of(epoch.number - EPOCHS_KEPT)))
    return Txn((Compare.mod_revision(keys.epoch, "==", seen),), tuple(then))


def _proven_loss(action: RaiseEpoch, keys: Keys, seen: SeenRevisions, guards: tuple[Compare, ...]) -> Txn:
    """Compares the plan too: registrations have their own watch, and a watch that lags is no loss."""
    absent = (Compare.absent(keys.plan(action.told)),) if action.told else ()
    raised = raise_epoch(keys, seen.epoch, action.epoch)
    return Txn((*guards, *absent, *raised.compares), raised.then)


def _proclaimed(keys: Keys, leader: Leader, at: str | None = None, why: str | None = None) -> list[Op]:
    term = Term(**leader.model_dump(include={"term", "node", "rank", "host", "token"}), at=at, why=why)
    return [Op.put(keys.leader, leader.encode()), Op.put(keys.term(term.term), term.encode())]


def _settle(action: SettleEpoch, keys: Keys, guards: tuple[Compare, ...]) -> Txn:
    compares, epoch = list(guards), action.epoch
    then = [Op.put(keys.epoch, epoch.encode()), Op.put(keys.epoch_of(epoch.number), epoch.encode())]
    if action.agreed is not None:
        then.append(Op.put(keys.agreed, action.agreed.encode()))
    if action.decides:
        compares.append(_undecided(keys, action.decides))
        reason = "etcd's history went back, and " + ("a rank" if action.commits else "no rank") + " knows of its commit"
        decision = Decision(commit=action.commits, by="leader", reason=reason)
        then += [Op.put(keys.decision(action.decides), decision.encode()), Op.delete(keys.open_mark(action.decides))]
    if action.plan is not None:
        number = action.plan.number
        compares.append(Compare.absent(keys.plan(number)))
        decision = Decision(commit=True, by="leader", reason="etcd had lost it: written back from the ranks")
        then += [Op.put(keys.plan(number), action.plan.encode()), Op.put(keys.decision(number), decision.encode())]
        then.append(Op.delete(keys.receipts_of(number), prefix=True))  # they are older than the plan and do not count
    return Txn(tuple(compares), tuple(then))


def proclaim(
    keys: Keys,
    leader: Leader,
    former: Leader | None = None,
    *,
    epoch_revision: int = 0,
    at: str | None = None,
    why: str | None = None,
) -> Txn:
    """Proclaims a leader to every agent and records the term. etcd refuses it unless the candidate still holds its
    token and the epoch of the token (by the mod revision of `state/epoch`) is the run's."""
    then = _proclaimed(keys, leader, at, why)
    if leader.term > TERMS_KEPT:
        then.append(Op.delete(keys.term(leader.term - TERMS_KEPT)))
    if former is not None:
        then.append(Op.delete(keys.resigned_of(former.node)))
    same_epoch = Compare.mod_revision(keys.epoch, "==", epoch_revision)
    return Txn((Fence(leader.candidate, leader.token).compare(), same_epoch), tuple(then))


def _undecided(keys: Keys, number: int) -> Compare:
    return Compare.absent(keys.decision(number))


def _same_agreed(keys: Keys, seen: SeenRevisions) -> Compare:
    """Newcomers start with `agreed`: they would lack a commit that was written since it was read."""
    return Compare.mod_revision(keys.agreed, "==", seen.agreed)


def _same_attempts(keys: Keys, seen: SeenRevisions) -> Compare:
    """The count was not cleared since it was read."""
    return Compare.mod_revision(keys.attempts, "==", seen.attempts)


def _form_view(action: FormView, keys: Keys, guards: tuple[Compare, ...]) -> Txn:
    compares = list(guards)
    then = [
        Op.put(keys.view, action.view.encode()),
        Op.put(keys.agreed, action.agreed.encode()),
        Op.put(keys.schema, action.schema.encode()),
        Op.delete(keys.left, prefix=True),
        Op.delete(keys.failures, prefix=True),
        Op.delete(keys.arrivals, prefix=True),
        Op.delete(keys.forming),
    ]
    if action.view.fresh:
        then.append(Op.put(keys.entered, Entered(view=action.view.number).encode()))  # no rank stays
    if action.attempts is not None:
        then.append(Op.put(keys.attempts, action.attempts.encode()))
    if action.abort_plan is not None:
        compares.append(_undecided(keys, action.abort_plan))
        decision = Decision(commit=False, reason="the view changed")
        then.append(Op.put(keys.decision(action.abort_plan), decision.encode()))
        then.append(Op.delete(keys.open_mark(action.abort_plan)))
    if action.view.fresh:
        then.append(Op.delete(keys.commands, prefix=True))  # they were meant for the former workers
        then += [Op.put(keys.rejected_of(item.name), item.encode()) for item in action.rejections[:MAX_REJECTIONS]]
        then.append(Op.delete(keys.refused, prefix=True))
        then.append(Op.delete(keys.resume))
        then.append(Op.delete(keys.barriers, prefix=True))
    then += _start_of_view(action, keys)
    return Txn(tuple(compares), tuple(then))


def _start_of_view(action: FormView, keys: Keys) -> list[Op]:
    view = action.view
    ops = []
    if view.fresh:
        start = StartOfView(
            view=view.number,
            values=view.start.values,
            plan=view.start.plan,
            checkpoint=view.start.checkpoint,
            replays=action.schema.replays,
            at=action.at,
            changes=action.changes,
        )
        # A record with this number is from before the run's state was deleted by hand.
        ops += [Op.put(keys.start_of(view.number), start.encode()), Op.delete(keys.first_step_of(view.number))]
    if view.number > STARTS_KEPT:
        old = view.number - STARTS_KEPT
        ops += [Op.delete(keys.start_of(old)), Op.delete(keys.first_step_of(old))]
    return ops


def pointer_to(manifest: Manifest) -> Pointer:
    return Pointer(
        id=manifest.id,
        step=manifest.step,
        token=manifest.token,
        view=manifest.view,
        plan=manifest.plan,
        duration_s=manifest.duration_s,
    )


def _commit(action: CommitPlan, keys: Keys, guards: tuple[Compare, ...]) -> Txn:
    plan = action.plan
    compares = [*guards, _undecided(keys, plan.number), Compare.present(keys.open_mark(plan.number))]
    then = [
        Op.put(keys.decision(plan.number), Decision(commit=True, by="leader").encode()),
        Op.put(keys.agreed, action.agreed.encode()),
        Op.delete(keys.open_mark(plan.number)),
    ]
    if plan.kind != "config" and plan.change_id:
        then.append(Op.delete(keys.command(plan.change_id)))
    if plan.checkpoint is not None:
        # A restart must not resume from a checkpoint that the run has left.
        manifest = plan.checkpoint
        pointer = pointer_to(manifest).encode()
        compares.append(Compare.present(keys.checkpoint(manifest.id)))
        then += [Op.put(keys.latest, pointer), Op.put(keys.saved, pointer)]
    return Txn(tuple(compares), tuple(then))


def _open_plan(action: OpenPlan, keys: Keys, guards: tuple[Compare, ...]) -> Txn:
    plan = action.plan
    compares = [*guards, Compare.absent(keys.plan(plan.number))]
    if plan.kind != "config" and plan.change_id:
        # An informer that lags still shows a finished command.
        compares.append(Compare.mod_revision(keys.command(plan.change_id), "==", plan.revision))
    follows = plan.number - 1 if action.follows is None else action.follows
    if follows:
        compares.append(Compare.present(keys.decision(follows)))
    then = [
        Op.put(keys.plan(plan.number), plan.encode()),
        Op.put(keys.open_mark(plan.number), "1"),
        # Answers with this number are from before the run's state was deleted by hand.
        Op.delete(f"{keys.acks}{plan.number}/", prefix=True),
        Op.delete(keys.receipts_of(plan.number), prefix=True),
    ]
    then += _forget(keys, plan.number)
    return Txn(tuple(compares), tuple(then))


def _forget(keys: Keys, number: int) -> list[Op]:
    """Deletes what the history no longer keeps once plan `number` exists."""
    ops: list[Op] = []
    if number > ACKS_KEPT:
        ops.append(Op.delete(f"{keys.acks}{number - ACKS_KEPT}/", prefix=True))
    if number > RECEIPTS_KEPT:
        ops.append(Op.delete(keys.receipts_of(number - RECEIPTS_KEPT), prefix=True))
    if number > HISTORY_PLANS:
        ops += [Op.delete(keys.plan(number - HISTORY_PLANS)), Op.delete(keys.decision(number - HISTORY_PLANS))]
    return ops
