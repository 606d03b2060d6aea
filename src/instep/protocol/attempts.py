"""How often a run has failed, and whether it may start again. Pure.

Each view that lost a rank counts as one failure, however many ranks exited with the first one. The transaction that
forms the next view writes the count, or the one that refuses its workers. If a launcher replaces ranks one by one, each
replacement forms a view of its own: ranks that exit before training resumes belong to the same failure. Workers that
left cleanly, and a run that was stopped on request, have not failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from instep.protocol import membership
from instep.protocol.membership import RegisteredWorker, WorkerGroup
from instep.protocol.records import Attempts, Left, RankFailure, Refused, View, format_ranks, parse_ranks

FAILURES_KEPT = 20
FAILURES_TOLD = 5
MAX_CAUSES = 50
OTHER = "other causes"
NODE_LOST = "node lost"
TAKEN_OVER = "taken over"


@dataclass(frozen=True, slots=True)
class ReportedFailure:
    """A node's report of its first failed rank, and the revision that orders the reports."""

    failure: RankFailure
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureSituation:
    """The situation of a view that must be replaced."""

    view: View | None
    left: Mapping[str, Left]
    stopping: bool
    registered: tuple[RegisteredWorker, ...]
    reports: tuple[ReportedFailure, ...]
    attempts: Attempts
    has_progressed: bool = False
    """Whether the ranks of the view have completed a step together."""


def counted(situation: FailureSituation, group: WorkerGroup | None) -> Attempts:
    """The count after `group` has replaced the view. Without a group: the count that applies to newcomers now."""
    view, before = situation.view, situation.attempts
    if view is None or (group is None and not before.total):
        return before
    if not membership.active_ranks(view, situation.left):
        return Attempts(view=view.number) if before.total else before
    if group is None or situation.stopping:
        return before
    replaced = _replaced(view, group)
    if before.view == view.number:  # the group may differ from the one that was refused
        return before.model_copy(update={"replaced": format_ranks(replaced)}) if before.replaced else before
    lost = _lost(view, situation.left, group)
    if not lost:
        return before
    if _belongs_to_last_failure(situation, view, lost):
        replaced |= set(parse_ranks(before.replaced))
        return before.model_copy(update={"view": view.number, "replaced": format_ranks(replaced)})
    return _with(before, _first(situation, view, lost)).model_copy(update={"replaced": format_ranks(replaced)})


def limit_of(group: WorkerGroup) -> int | None:
    """How many failures the workers of the group allow; the lowest number if they disagree."""
    given = (item.member.max_restarts for item in group.by_rank.values())
    return min((limit for limit in given if limit is not None), default=None)


def rejected_joins(
    view: View | None, registered: Iterable[RegisteredWorker], attempts: Attempts, run: str
) -> tuple[Refused, ...]:
    """Refusals for newcomers of a run that has failed too often. Workers that train are not refused."""
    if not attempts.total:
        return ()
    members = view.workers() if view is not None else frozenset()
    refusals = []
    for group in membership.groups(registered, view):
        limit = limit_of(group)
        if limit is None or attempts.total <= limit:
            continue
        new = {item.member.worker for item in group.by_rank.values() if not item.member.view} - members
        if new:
            refusals.append(Refused.of(new, why_not(attempts, limit, run)))
    return tuple(refusals)


def why_not(attempts: Attempts, limit: int, run: str) -> str:
    """The reason of a refusal: how often and how the run failed, and what to do."""
    times = "once" if attempts.total == 1 else f"{attempts.total} times"
    last = [_in_words(failure) for failure in reversed(attempts.failures[-FAILURES_TOLD:])]
    more = attempts.total - len(last)
    told = "; ".join([*last, *([f"and {more} before that"] if more > 0 else [])])
    return (
        f"the run has failed {times} and may be restarted {limit} times (max_restarts): {told}. Fix the cause, then "
        f"run 'instep reset {run}'"
    )


def causes(attempts: Attempts) -> str:
    """`RuntimeError 2, node lost 1`, the most frequent first."""
    by_count = sorted(attempts.counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{cause} {count}" for cause, count in by_count)


def _lost(view: View, left: Mapping[str, Left], group: WorkerGroup) -> frozenset[int]:
    """Ranks of the view that did not leave cleanly and are not in the group."""
    gone, active = view.workers() - group.workers(), membership.active_ranks(view, left)
    return frozenset(worker.rank for worker in gone if worker.rank in active)


def _replaced(view: View, group: WorkerGroup) -> set[int]:
    return {worker.rank for worker in group.workers() - view.workers()}


def _belongs_to_last_failure(situation: FailureSituation, view: View, lost: frozenset[int]) -> bool:
    """Whether all lost ranks belong to the last failure: they were there then, and training has not resumed since."""
    before = situation.attempts
    is_next = bool(before.replaced) and before.view + 1 == view.number
    return is_next and not situation.has_progressed and lost.isdisjoint(parse_ranks(before.replaced))


def _first(situation: FailureSituation, view: View, lost: frozenset[int]) -> RankFailure:
    """The first report about a lost rank: the others may have exited because of it."""
    said = [item for item in situation.reports if item.failure.view == view.number and item.failure.rank in lost]
    if said:
        return min(said, key=lambda item: item.revision).failure
    rank = min(lost)
    known, here = view.workers(), [item.member for item in situation.registered if item.member.rank in lost]
    replaced = sorted((member for member in here if member.worker in known), key=lambda member: member.rank)
    if len(replaced) == len(lost):
        text = "another process has joined as this rank"
        return RankFailure(view=view.number, rank=rank, host=replaced[0].host, cause=TAKEN_OVER, text=text)
    node = next(name for name, members in view.nodes.items() if rank in members.ranks)
    return RankFailure(view=view.number, rank=rank, host=node, cause=NODE_LOST, text="the node stopped responding")


def _with(attempts: Attempts, failure: RankFailure) -> Attempts:
    counts = dict(attempts.counts)
    cause = failure.cause if failure.cause in counts or len(counts) < MAX_CAUSES else OTHER
    counts[cause] = counts.get(cause, 0) + 1
    failures = (*attempts.failures, failure)[-FAILURES_KEPT:]
    return attempts.model_copy(update={"view": failure.view, "counts": counts, "failures": failures})


def _in_words(failure: RankFailure) -> str:
    place = f"rank {failure.rank}" + (f" on {failure.host}" if failure.host else "")
    text = f": {failure.text}" if failure.text else ""
    when = f" at {failure.at}" if failure.at else ""
    return f"view {failure.view}{when}, {place}: {failure.cause}{text}"
