"""When all ranks have reached a barrier. Pure.

Each node reports which of its ranks wait at which barrier. When all running ranks wait at one barrier, the leader
releases it. A rank waits at one barrier at a time, so the releases of a run form one sequence, and one number says
which of them a rank has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from instep.protocol import membership
from instep.protocol.records import Arrivals, Left, View
from instep.protocol.records import Release as Record

RELEASES_KEPT = 20
"""Barriers whose last release is kept. One would suffice: a rank reaches the next barrier only after the release."""


@dataclass(frozen=True, slots=True)
class Released:
    """The record in `state/barriers/<name>`, and the revision that wrote it."""

    record: Record
    revision: int


@dataclass(frozen=True, slots=True)
class BarrierWait:
    """A rank that waits at barrier `name`. `view` is its view when it arrived; `after` is the number of the last
    release that it has seen, at any barrier."""

    name: str
    view: int
    after: int

    def is_freed_by(self, released: Released | None) -> bool:
        """Whether the release applies to this rank: a rank does not pass because its predecessor had arrived."""
        return released is not None and released.record.view >= self.view and released.record.number > self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class BarrierSituation:
    """The input of the leader's decision."""

    view: View
    left: Mapping[str, Left]
    released: Mapping[str, Released]
    arrivals: Mapping[str, Arrivals]
    """By node."""


@dataclass(frozen=True, slots=True)
class ReleaseBarrier:
    """Releases a barrier. etcd refuses it if there was another release since `seen`."""

    name: str
    release: Record
    seen: int
    outdated: tuple[str, ...] = ()
    """Barriers whose releases are deleted."""


@dataclass(frozen=True, slots=True)
class MissingRanks:
    """Ranks that have not reached a barrier; `elsewhere` lists those that wait at another one."""

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
    """Ranks that are missing at a barrier, as far as their nodes have reported."""
    missing = membership.active_ranks(situation.view, situation.left) - _arrived(situation, name)
    others = {other for arrivals in _here(situation).values() for other in arrivals.waiting if other != name}
    elsewhere = {other: tuple(sorted(missing & _arrived(situation, other))) for other in sorted(others)}
    return MissingRanks(tuple(sorted(missing)), {other: ranks for other, ranks in elsewhere.items() if ranks})


def is_due(wanted: Arrivals | None, written: Arrivals | None, *, all_wait: bool, overdue: bool) -> bool:
    """Whether a node writes its report now: when its last rank has arrived, or when the wait is long, because the
    missing ranks are shown then. At once if the written report names a rank that no longer waits."""
    if wanted == written:
        return False
    return all_wait or overdue or not _claims(written) <= _claims(wanted)


def without(arrivals: Arrivals | None, name: str) -> Arrivals | None:
    """The report after barrier `name` was released; None if it is empty."""
    waiting = {other: ranks for other, ranks in arrivals.waiting.items() if other != name} if arrivals else {}
    return arrivals.model_copy(update={"waiting": waiting}) if arrivals is not None and waiting else None


def _release(situation: BarrierSituation, name: str) -> ReleaseBarrier:
    seen = situation.released[name].revision if name in situation.released else 0
    seen_numbers = [waiting.after for arrivals in _here(situation).values() for waiting in arrivals.waiting.values()]
    number = max([*(item.record.number for item in situation.released.values()), *seen_numbers], default=0) + 1
    others = [other for other in situation.released if other != name]
    oldest_last = sorted(others, key=lambda other: situation.released[other].record.number, reverse=True)
    release = Record(view=situation.view.number, number=number)
    return ReleaseBarrier(name, release, seen, tuple(oldest_last[RELEASES_KEPT - 1 :]))


def _here(situation: BarrierSituation) -> dict[str, Arrivals]:
    """The reports of the current view."""
    return {
        node: arrivals
        for node, arrivals in situation.arrivals.items()
        if arrivals.view == situation.view.number and node in situation.view.nodes
    }


def _arrived(situation: BarrierSituation, name: str) -> set[int]:
    """Ranks that wait for the next release of this barrier, each reported by its own node."""
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
