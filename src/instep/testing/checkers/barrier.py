"""Double barriers: nobody passes before all have come, nobody is gone before all have done."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from instep.errors import SettingsError
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

    def __post_init__(self) -> None:
        happened = [self.entered_at, *(at for at in (self.passed_at, self.left_at, self.gone_at) if at is not None)]
        ends = [(self.entered_at, self.lost_at)] if self.lost_at is not None else []
        if not all(before <= after for before, after in [*pairwise(happened), *ends]):
            raise SettingsError(f"the times of {self.who} at {self.barrier} do not rise: use one monotonic clock")

    @property
    def inside_until(self) -> float:
        """When it certainly was no longer in."""
        return min(_or_never(self.gone_at), _or_never(self.lost_at))

    def __str__(self) -> str:
        return f"{self.who} (entered at {self.entered_at:.6f})"


def check_barrier(passages: Iterable[Passage], count: int) -> Verdict:
    """Whether nobody passed before `count` were in at the same time, nobody was gone before all who passed had called
    leave or were lost, and never more than `count` were in; each barrier by itself, each round by itself.

    A participant that came twice counts once. Limit: it counts as present from its call of enter on, which is before
    its key is in etcd.
    """
    if count < 1:
        raise SettingsError(f"a barrier is for 1 participant or more, not {count}")
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
            entered = len({other.who for other in members if other.entered_at <= passage.passed_at})
            yield Violation(
                "enter",
                f"{_place(passage)}: {passage} passed at {passage.passed_at:.6f}, when {entered} had entered and never "
                f"{count} at once",
            )


def _full_at(members: list[Passage], count: int) -> float:
    """When for the first time `count` different ones were present at once; who is lost at a moment still is then."""
    moves = [(passage.entered_at, 1, passage.who) for passage in members]
    moves += [(passage.lost_at, -1, passage.who) for passage in members if passage.lost_at is not None]
    present: Counter[str] = Counter()
    for at, change, who in sorted(moves, key=lambda move: (move[0], -move[1])):
        present[who] += change
        if not present[who]:
            del present[who]
        if len(present) >= count:
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
