"""The config of each step, stored as ranges: millions of steps, thousands of ranges."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple


class StepRange(NamedTuple):
    """Steps `first` to `last`, inclusive, with the same config; `witness` is a source of that."""

    first: int
    last: int
    digest: str
    witness: object


class StepMap:
    """Ranges without overlap, in order. Adjacent ranges with the same config are merged."""

    def __init__(self) -> None:
        self._ranges: list[StepRange] = []
        self._firsts: list[int] = []

    def __repr__(self) -> str:
        return f"StepMap({len(self._ranges)} ranges)"

    def __iter__(self) -> Iterator[StepRange]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def overlapping(self, first: int, last: int) -> list[StepRange]:
        """The known ranges within these steps."""
        if last < first:
            return []
        low, high = self._reach(first, last)
        return [s._replace(first=max(s.first, first), last=min(s.last, last)) for s in self._ranges[low:high]]

    def fill(self, new: StepRange) -> list[StepRange]:
        """Adds what is not known yet. Returns known ranges with another config, within the new range."""
        known = self.overlapping(new.first, new.last)
        if len(known) == 1 and known[0][:3] == new[:3]:
            return []
        gaps: list[StepRange] = []
        at = new.first
        for step_range in known:
            if step_range.first > at:
                gaps.append(new._replace(first=at, last=step_range.first - 1))
            at = step_range.last + 1
        if at <= new.last:
            gaps.append(new._replace(first=at))
        if gaps:
            low, high = self._reach(new.first, new.last)
            self._splice(low, high, sorted([*self._ranges[low:high], *gaps], key=_first))
        return [step_range for step_range in known if step_range.digest != new.digest]

    def overlay(self, new: StepRange) -> None:
        """Replaces what was known about the steps of the new range."""
        low, high = self._reach(new.first, new.last)
        kept = [
            part
            for old in self._ranges[low:high]
            for part in (old._replace(last=new.first - 1), old._replace(first=new.last + 1))
            if old.first <= part.first <= part.last <= old.last
        ]
        self._splice(low, high, sorted([*kept, new], key=_first))

    def _reach(self, first: int, last: int) -> tuple[int, int]:
        """The slice of ranges that share a step with these."""
        low = bisect_right(self._firsts, first) - 1
        if low < 0 or self._ranges[low].last < first:
            low += 1
        return low, max(low, bisect_left(self._firsts, last + 1))

    def _splice(self, low: int, high: int, ranges: list[StepRange]) -> None:
        """Put these in place of a slice, and join what has become one."""
        before, after = self._ranges[max(0, low - 1) : low], self._ranges[high : high + 1]
        joined: list[StepRange] = []
        for step_range in [*before, *ranges, *after]:
            if joined and joined[-1].digest == step_range.digest and joined[-1].last + 1 == step_range.first:
                joined[-1] = joined[-1]._replace(last=step_range.last)
            else:
                joined.append(step_range)
        place = slice(low - len(before), high + len(after))
        self._ranges[place] = joined
        self._firsts[place] = [step_range.first for step_range in joined]


def _first(step_range: StepRange) -> int:
    return step_range.first
