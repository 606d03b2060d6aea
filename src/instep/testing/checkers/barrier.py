"""Double barriers: nobody passes before all have come, nobody is gone before all have done."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from instep.testing.checkers.jsonl import record
from instep.testing.checkers.verdict import Findings, Verdict, Violation


@record
@dataclass(frozen=True, slots=True)
class Passage:
    """One participant's way through one round of one barrier, monotonic seconds; None for what did not happen.

    `entered_at`: it called enter. `passed_at`: enter returned. `left_at`: it called leave. `gone_at`: leave returned.
    `lost_at`: it died, its session ended or enter gave up, so that the others need not wait for it any more.
    """

    barrier: str
    round: int
    who: str
    entered_at: float
    passed_at: float | None = None
    left_at: float | None = None
    gone_at: float | None = None
    lost_at: float | None = None

    @property
    def inside_until(self) -> float:
        """When it certainly was no longer in."""
        return min(_or_never(self.gone_at), _or_never(self.lost_at))

    def __str__(self) -> str:
        return f"{self.who} (entered at {self.entered_at:.6f})"


def check_barrier(passages: Iterable[Passage], count: int) -> Verdict:
    """Whether nobody passed before `count` were in at the same time, nobody was gone before all who passed had called
    leave or were lost, and never more than `count` were in; each barrier by itself, each round by itself.

    Limit: a participant counts as present from its call of enter on, which is before its key is in etcd.
    """
    found = sorted(passages, key=lambda passage: (passage.barrier, passage.round))
    findings = Findings("barrier")
    findings.checked = len(found)
    for _, one_round in groupby(found, key=lambda passage: (passage.barrier, passage.round)):
        members = list(one_round)
        findings.extend(_passed_early(members, count))
        findings.extend(_gone_early(members))
    for _, one_barrier in groupby(found, key=lambda passage: passage.barrier):
        findings.extend(_too_many(list(one_barrier), count))
    return findings.verdict()


def _passed_early(members: list[Passage], count: int) -> Iterator[Violation]:
    full_at = _full_at(members, count)
    for passage in members:
        if passage.passed_at is not None and passage.passed_at < full_at:
            entered = sum(other.entered_at <= passage.passed_at for other in members)
            yield Violation(
                "enter",
                f"{_place(passage)}: {passage} passed at {passage.passed_at:.6f}, when {entered} had entered and never "
                f"{count} at once",
            )


def _full_at(members: list[Passage], count: int) -> float:
    """When for the first time `count` were present at once."""
    entries = sorted(passage.entered_at for passage in members)
    losses = sorted(_or_never(passage.lost_at) for passage in members)
    for index, at in enumerate(entries, start=1):
        if index - bisect_left(losses, at) >= count:
            return at
    return math.inf


def _gone_early(members: list[Passage]) -> Iterator[Violation]:
    inside = [passage for passage in members if passage.passed_at is not None]
    for passage in members:
        if passage.gone_at is None:
            continue
        late = [other for other in inside if min(_or_never(other.left_at), _or_never(other.lost_at)) > passage.gone_at]
        if late:
            names = ", ".join(sorted(other.who for other in late))
            yield Violation(
                "leave", f"{_place(passage)}: {passage} was gone at {passage.gone_at:.6f}, before {names} had left"
            )


def _too_many(passages: list[Passage], count: int) -> Iterator[Violation]:
    """Over all rounds: who has not left the last round is still in."""
    changes = [(passage.passed_at, 1, passage) for passage in passages if passage.passed_at is not None]
    changes += [(passage.inside_until, 0, passage) for _, _, passage in changes]
    inside = 0
    for at, is_entry, passage in sorted(changes, key=lambda change: change[:2]):
        inside += 1 if is_entry else -1
        if is_entry and inside > count:
            yield Violation(
                "most", f"{_place(passage)}: {passage} was let in at {at:.6f} as number {inside} of {count}"
            )


def _place(passage: Passage) -> str:
    return f"barrier {passage.barrier}, round {passage.round}"


def _or_never(at: float | None) -> float:
    return math.inf if at is None else at
