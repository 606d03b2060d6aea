"""Which config each step was run with, kept as stretches of steps: millions of steps, thousands of stretches."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple


class Stretch(NamedTuple):
    """Steps `first` to `last`, both included, all with the same config; `witness` is one of those who say so."""

    first: int
    last: int
    digest: str
    witness: object


class StepMap:
    """Stretches that do not overlap, in order. Neighbours of one config are joined, so that it stays small."""

    def __init__(self) -> None:
        self._stretches: list[Stretch] = []
        self._firsts: list[int] = []

    def __repr__(self) -> str:
        return f"StepMap({len(self._stretches)} stretches)"

    def __iter__(self) -> Iterator[Stretch]:
        return iter(self._stretches)

    def __len__(self) -> int:
        return len(self._stretches)

    def overlapping(self, first: int, last: int) -> list[Stretch]:
        """What is known of these steps, cut to them."""
        if last < first:
            return []
        low, high = self._reach(first, last)
        return [s._replace(first=max(s.first, first), last=min(s.last, last)) for s in self._stretches[low:high]]

    def fill(self, new: Stretch) -> list[Stretch]:
        """Add what is not known yet; returns what is known otherwise, cut to the new stretch."""
        known = self.overlapping(new.first, new.last)
        if len(known) == 1 and known[0][:3] == new[:3]:
            return []
        gaps: list[Stretch] = []
        at = new.first
        for stretch in known:
            if stretch.first > at:
                gaps.append(new._replace(first=at, last=stretch.first - 1))
            at = stretch.last + 1
        if at <= new.last:
            gaps.append(new._replace(first=at))
        if gaps:
            low, high = self._reach(new.first, new.last)
            self._splice(low, high, sorted([*self._stretches[low:high], *gaps], key=_first))
        return [stretch for stretch in known if stretch.digest != new.digest]

    def overlay(self, new: Stretch) -> None:
        """Let the new stretch hold, whatever was known of its steps."""
        low, high = self._reach(new.first, new.last)
        kept = [
            part
            for old in self._stretches[low:high]
            for part in (old._replace(last=new.first - 1), old._replace(first=new.last + 1))
            if old.first <= part.first <= part.last <= old.last
        ]
        self._splice(low, high, sorted([*kept, new], key=_first))

    def _reach(self, first: int, last: int) -> tuple[int, int]:
        """The slice of stretches that share a step with these."""
        low = bisect_right(self._firsts, first) - 1
        if low < 0 or self._stretches[low].last < first:
            low += 1
        return low, max(low, bisect_left(self._firsts, last + 1))

    def _splice(self, low: int, high: int, stretches: list[Stretch]) -> None:
        """Put these in place of a slice, and join what has become one."""
        before, after = self._stretches[max(0, low - 1) : low], self._stretches[high : high + 1]
        joined: list[Stretch] = []
        for stretch in [*before, *stretches, *after]:
            if joined and joined[-1].digest == stretch.digest and joined[-1].last + 1 == stretch.first:
                joined[-1] = joined[-1]._replace(last=stretch.last)
            else:
                joined.append(stretch)
        place = slice(low - len(before), high + len(after))
        self._stretches[place] = joined
        self._firsts[place] = [stretch.first for stretch in joined]


def _first(stretch: Stretch) -> int:
    return stretch.first
