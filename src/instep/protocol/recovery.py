"""What the leader does after etcd's history has gone back: a situation in, one action out. Pure.

It begins a new epoch, in which only registrations of this epoch count. When no rank is missing and all training ranks
have reported what they hold, the newest decision is written back, and everything else that was promised is aborted.
Until then nothing is planned and no view is formed; training continues.
"""

from __future__ import annotations

from dataclasses import replace

from instep.protocol.actions import LeaderAction, ProclaimLeader, RaiseEpoch, RewriteConfig, SettleEpoch
from instep.protocol.chain import conflict, is_lost
from instep.protocol.membership import RegisteredWorker
from instep.protocol.records import Agreed, Epoch, Head, Held, Leader, Member
from instep.protocol.situation import Situation
from instep.recipes.token import MAX_EPOCH, epoch_of, make_token, revision_of
from instep.scalar import Scalar, same
from instep.text import one_line

MAX_REWRITTEN = 60
"""Desired values that one transaction writes; etcd allows 128 operations."""
WHY = "etcd's history went back: ranks hold what etcd has lost"
NO_EPOCH_LEFT = f"its epochs are used up ({MAX_EPOCH} is the last one), so the run needs another name"
"""The problem of the last possible epoch."""


def last_number(now: Situation) -> int:
    """The highest plan number that a rank or etcd has known."""
    plan = now.plan.number if now.plan is not None else 0
    agreed = now.agreed.plan if now.agreed is not None else 0
    epoch = max(now.epoch.told, now.epoch.plan) if now.epoch is not None else 0
    return max(plan, agreed, epoch)


def explain(epoch: Epoch) -> str:
    """What happened, what it means for training, and what to do."""
    moved = f", revision {epoch.before} → {epoch.after}" if epoch.before and "revision" not in epoch.why else ""
    what = f"{one_line(epoch.why)} (epoch {epoch.number}{moved})"
    if epoch.settled:
        return f"{what}: etcd holds what the ranks hold again, and changes are applied as usual"
    if epoch.problem is not None:
        return (
            f"{what}: {one_line(epoch.problem)}. Training continues, but no change is applied: restart all ranks, "
            "they resume from the newest checkpoint"
        )
    return (
        f"{what}: training continues with the agreed values; changes wait until all ranks have reported what they "
        "hold. Nothing needs to be done"
    )


def epoch_after(number: int, why: str) -> Epoch:
    """The epoch after `number`. After the last one there is none: it is repeated with a problem that says so."""
    if number >= MAX_EPOCH:
        return Epoch(number=MAX_EPOCH, why=why, problem=NO_EPOCH_LEFT)
    return Epoch(number=number + 1, why=why)


def number_of(epoch: Epoch | None) -> int:
    return epoch.number if epoch is not None else 0


def is_under_way(now: Situation) -> bool:
    """Whether the epoch must be settled before anything else is decided."""
    return (now.epoch is not None and not now.epoch.settled) or bool(_proof(now))


def next_step(now: Situation) -> LeaderAction | None:
    """The next action in an epoch that is not settled; None while reports are missing."""
    proof = _proof(now)
    if proof:
        if now.epoch is not None and now.epoch.problem == NO_EPOCH_LEFT:
            return None
        epoch = epoch_after(max(number_of(now.epoch), *(member.epoch for member in proof)), WHY)
        told = max(member.head.told for member in proof if member.head is not None)
        return RaiseEpoch(epoch, told if told > last_number(now) else 0)
    assert now.epoch is not None
    epoch = now.epoch
    trained = _trained(now)
    said = [item for item in now.registered if item.member.epoch >= epoch.number]
    if any(item.member.head is not None for item in now.registered if item not in said) or not _all_are_here(now, said):
        return None  # not registered in this epoch, or registered in the restored history
    if not trained:
        done = {"settled": True, "told": last_number(now), "problem": None}
        return SettleEpoch(epoch.model_copy(update=done), decides=_open(now))
    return _about_heads(now, epoch, trained)


def renewed(now: Situation) -> ProclaimLeader | None:
    """Gives the leader a token of the run's epoch; None if it has one."""
    leader, number = now.leader, number_of(now.epoch)
    if leader is None or epoch_of(leader.token) >= number:
        return None
    return ProclaimLeader(_in_epoch(leader, number))


def _in_epoch(leader: Leader, number: int) -> Leader:
    return leader.model_copy(update={"token": make_token(number, revision_of(leader.token))})


def _trained(now: Situation) -> list[tuple[int, Head]]:
    return [(item.member.rank, item.member.head) for item in now.registered if item.member.head is not None]


def _all_are_here(now: Situation, said: list[RegisteredWorker]) -> bool:
    """Whether every rank that has not left is registered: a rank that registers later may hold a commit that the others
    do not know. `said` are the registrations of this epoch. An earlier one may come from the restored history, and its
    worker, even if new then, may train now. If some have trained, their world size counts."""
    view = max((item.member.view for item in said), default=0)
    sizes = {item.member.world_size for item in said if bool(item.member.view) == bool(view)}
    left = {rank for record in now.left.values() if 0 < view <= record.view for rank in record.ranks}
    here = left | {item.member.rank for item in said}
    return any(here.issuperset(range(size)) for size in sizes)


def _proof(now: Situation) -> list[Member]:
    """Registrations that could not exist if etcd held the history in which they were made."""
    view, epoch = now.view.number if now.view is not None else 0, number_of(now.epoch)
    view = max(view, now.epoch.view if now.epoch is not None else 0)
    if now.epoch is not None and not now.epoch.settled:
        return [item.member for item in now.registered if item.member.head is not None and item.member.epoch > epoch]
    return [item.member for item in now.registered if _is_proof(now, item, view, epoch)]


def _is_proof(now: Situation, item: RegisteredWorker, view: int, epoch: int) -> bool:
    if item.member.head is None or item.member.epoch < epoch:
        return False
    return is_lost(item.member, now.agreed, view, epoch, last_number(now)) or _was_in_another_view(now, item)


def _was_in_another_view(now: Situation, item: RegisteredWorker) -> bool:
    """Whether it was in a view with the number of the one in etcd but is not in that one: etcd holds another history.
    Not if a living worker of the view has its rank: then the next view shows it that it was replaced."""
    view, settled_view = now.view, now.epoch.view if now.epoch is not None else 0
    if view is None or item.member.view != view.number or item.member.view <= settled_view:
        return False
    members = view.workers()
    living = {other.member.rank for other in now.registered if other.member.worker in members}
    return item.member.worker not in members and item.member.rank not in living


def _about_heads(now: Situation, epoch: Epoch, trained: list[tuple[int, Head]]) -> LeaderAction | None:
    top = max((head for _, head in trained), key=lambda head: (head.plan, head.digest))
    agreed, held = now.agreed, _held(now, top)
    is_there = agreed is not None and (not top.digest or top.digest in (agreed.digest, agreed.parent))
    newest = agreed if is_there else held.agreed if held is not None else None
    if newest is None:
        return None  # its holder has registered, and reports it next
    problem = conflict(trained, top, newest.parent if newest.digest == top.digest else top.digest)
    if problem is not None:
        return None if problem == epoch.problem else SettleEpoch(epoch.model_copy(update={"problem": problem}))
    superseded = _superseded(now, newest)
    if superseded:
        return RewriteConfig(superseded)
    told = max(last_number(now), *(head.told for _, head in trained), top.plan)
    view = max(item.member.view for item in now.registered)
    done = {"settled": True, "problem": None, "plan": newest.plan, "digest": newest.digest, "told": told, "view": view}
    commits = now.plan is not None and now.plan.digest == newest.digest
    settle = SettleEpoch(epoch.model_copy(update=done), decides=_open(now), commits=commits)
    return settle if is_there else _with_lost(now, settle, newest, held)


def _with_lost(now: Situation, settle: SettleEpoch, newest: Agreed, held: Held | None) -> SettleEpoch:
    number = settle.epoch.number
    agreed = replace(newest, restored=number, revision=now.epoch_revision)
    plan = held.plan if held is not None and held.plan is not None and held.plan.digest == newest.digest else None
    last = now.plan.number if now.plan is not None else 0
    if plan is None or plan.number <= last:
        return SettleEpoch(settle.epoch, agreed, None, settle.decides, settle.commits)
    plan = replace(plan, restored=number)
    return SettleEpoch(settle.epoch, agreed, plan, settle.decides, settle.commits)


def _held(now: Situation, top: Head) -> Held | None:
    return next((held for held in now.held.values() if held.agreed.digest == top.digest), None)


def _open(now: Situation) -> int:
    return now.plan.number if now.plan is not None and now.decision is None else 0


def _superseded(now: Situation, newest: Agreed) -> dict[str, Scalar]:
    """Desired values from before the epoch that differ from the agreed ones: they were superseded in the lost part of
    the history. Without this they would return as a change."""
    found: dict[str, Scalar] = {}
    for name, item in now.desired.items():
        if name not in newest.values or item.revision > now.epoch_revision or len(found) == MAX_REWRITTEN:
            continue
        try:
            is_agreed = same(now.schema.parse(name, item.text), newest.values[name])
        except ValueError:
            is_agreed = False
        if not is_agreed:
            found[name] = newest.values[name]
    return found
