"""When all ranks have come to a barrier. Pure.

A node says which of its ranks wait where; when all that still run wait at one barrier, its release lets them through.
Each rank waits at one barrier at a time, so releases are one sequence for everybody, and one number tells which of them
a rank has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from instep.coordination import membership
from instep.coordination.records import Arrivals, Left, View
from instep.coordination.records import Release as Record

RELEASES_KEPT = 20
"""Barriers whose last release is kept. Fewer would do: a rank that has not seen one cannot have come to the next."""


@dataclass(frozen=True, slots=True)
class Released:
    """What stands in `state/barriers/<name>`, and the revision that wrote it."""

    record: Record
    revision: int


@dataclass(frozen=True, slots=True)
class BarrierWait:
    """A rank waits at barrier `name`. It was in view `view` when it came; the last release that let it through, at
    whichever barrier, had number `after`."""

    name: str
    view: int
    after: int

    def is_freed_by(self, released: Released | None) -> bool:
        """A release counts for those who were of its view, so nobody passes on account of its predecessor."""
        return released is not None and released.record.view >= self.view and released.record.number > self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class BarrierSituation:
    """All that the leader's decision looks at."""

    view: View
    left: Mapping[str, Left]
    released: Mapping[str, Released]
    arrivals: Mapping[str, Arrivals]
    """By node."""


@dataclass(frozen=True, slots=True)
class ReleaseBarrier:
    """All have come. Refused when there has been another release since `seen`."""

    name: str
    release: Record
    seen: int
    outdated: tuple[str, ...] = ()
    """Barriers whose releases need not be kept any more."""


@dataclass(frozen=True, slots=True)
class MissingRanks:
    """Who has not come to a barrier; `elsewhere` says who of them waits at another one."""

    ranks: tuple[int, ...]
    elsewhere: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def next_release(situation: BarrierSituation) -> ReleaseBarrier | None:
    here = _here(situation)
    names = sorted({name for arrivals in here.values() for name in arrivals.waiting})
    if not names:
        return None
    active = membership.active_ranks(situation.view, situation.left)
    for name in names:
        if active and active <= _arrived(situation, name):
            return _release(situation, name)
    return None


def missing_ranks(situation: BarrierSituation, name: str) -> MissingRanks:
    """Who is still missing at a barrier, as far as nodes have said."""
    missing = membership.active_ranks(situation.view, situation.left) - _arrived(situation, name)
    others = {other for arrivals in _here(situation).values() for other in arrivals.waiting if other != name}
    elsewhere = {other: tuple(sorted(missing & _arrived(situation, other))) for other in sorted(others)}
    return MissingRanks(tuple(sorted(missing)), {other: ranks for other, ranks in elsewhere.items() if ranks})


def is_due(wanted: Arrivals | None, written: Arrivals | None, *, all_wait: bool, overdue: bool) -> bool:
    """Whether a node says now what it has to say. Not with each rank that comes: with the last one, or when it takes
    long, so that the others can be named. At once when it has said of somebody what is true no more."""
    if wanted == written:
        return False
    return all_wait or overdue or not _claims(written) <= _claims(wanted)


def without(arrivals: Arrivals | None, name: str) -> Arrivals | None:
    """What is left of it once barrier `name` has been released; None for nothing."""
    waiting = {other: ranks for other, ranks in arrivals.waiting.items() if other != name} if arrivals else {}
    return arrivals.model_copy(update={"waiting": waiting}) if arrivals is not None and waiting else None


def _release(situation: BarrierSituation, name: str) -> ReleaseBarrier:
    seen = situation.released[name].revision if name in situation.released else 0
    told = [waiting.after for arrivals in _here(situation).values() for waiting in arrivals.waiting.values()]
    number = max([*(item.record.number for item in situation.released.values()), *told], default=0) + 1
    others = [other for other in situation.released if other != name]
    oldest_last = sorted(others, key=lambda other: situation.released[other].record.number, reverse=True)
    release = Record(view=situation.view.number, number=number)
    return ReleaseBarrier(name, release, seen, tuple(oldest_last[RELEASES_KEPT - 1 :]))


def _here(situation: BarrierSituation) -> dict[str, Arrivals]:
    """What was said in the view that stands."""
    return {
        node: arrivals
        for node, arrivals in situation.arrivals.items()
        if arrivals.view == situation.view.number and node in situation.view.nodes
    }


def _arrived(situation: BarrierSituation, name: str) -> set[int]:
    """Ranks that wait for the next release of this barrier, each said by its own node."""
    seen = situation.released[name].revision if name in situation.released else 0
    found: set[int] = set()
    for node, arrivals in _here(situation).items():
        waiting = arrivals.waiting.get(name)
        if waiting is not None and waiting.seen == seen:
            found |= set(waiting.ranks) & set(situation.view.nodes[node].ranks)
    return found


def _claims(arrivals: Arrivals | None) -> set[tuple[int, str, int]]:
    if arrivals is None:
        return set()
    return {(arrivals.view, name, rank) for name, waiting in arrivals.waiting.items() for rank in waiting.ranks}
