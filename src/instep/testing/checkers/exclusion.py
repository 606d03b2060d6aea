"""Elections and locks: one holder at a time, and tokens that a resource can fence by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from instep.errors import SettingsError
from instep.testing.checkers.jsonl import record
from instep.testing.checkers.verdict import Findings, Verdict, Violation


@record
@dataclass(frozen=True, slots=True)
class Hold:
    """One time that `holder` believed to hold `name`, from `acquired_at` until `until`, monotonic seconds.

    `until` is when it released, or stopped to believe; None when it believed to the end of the history.
    `valid_until` is the end of its lease by its own reckoning, as last renewed, if that is known.
    """

    name: str
    holder: str
    token: int
    acquired_at: float
    until: float | None = None
    valid_until: float | None = None

    def __post_init__(self) -> None:
        if self.until is not None and self.until < self.acquired_at:
            raise SettingsError(f"{self.holder} held {self.name} until before it had it: use one monotonic clock")

    @property
    def end(self) -> float:
        """When the hold ended; infinity if it did not."""
        return math.inf if self.until is None else self.until

    def __str__(self) -> str:
        until = "the end" if self.until is None else f"{self.until:.6f}"
        return f"{self.holder} (token {self.token}, from {self.acquired_at:.6f} until {until})"


@record
@dataclass(frozen=True, slots=True)
class Accepted:
    """A write that the resource `name` accepted, with the token that came with it. Records stand in the order in which
    the resource accepted them."""

    name: str
    holder: str
    token: int


def check_exclusion(holds: Iterable[Hold], *, overlap_s: float = 0.0) -> Verdict:
    """Whether tokens are unique and rise in the order of acquisition, nobody believed beyond its lease, and no two
    believed at once; each lock by itself.

    `overlap_s` is how long two may believe at once, and one beyond its lease: 0 for a lock whose holder looks at its
    validity, math.inf where holding is a hint and only tokens count (`run.leads`). Limit: what a holder believed is
    what it recorded; the resource behind the lock is `check_fencing`'s matter.
    """
    if not overlap_s >= 0:
        raise SettingsError(f"two cannot believe at once for {overlap_s:g} s: give 0 or more")
    by_name: dict[str, list[Hold]] = {}
    for hold in holds:
        by_name.setdefault(hold.name, []).append(hold)
    findings = Findings("exclusion")
    for name in sorted(by_name):
        findings.checked += len(by_name[name])
        findings.extend(_check_one(by_name[name], overlap_s))
    return findings.verdict()


def check_fencing(accepted: Iterable[Accepted]) -> Verdict:
    """Whether each resource accepted nothing below the highest token it had seen, and each token from one holder.

    Limit: a write that was refused although its token was the highest is not looked at.
    """
    highest: dict[str, Accepted] = {}
    owners: dict[tuple[str, int], str] = {}
    findings = Findings("fencing")
    for write in accepted:
        findings.checked += 1
        top = highest.get(write.name)
        if top is not None and write.token < top.token:
            was, came = f"token {top.token} of {top.holder}", f"token {write.token} of {write.holder}"
            findings.add("fenced", f"{write.name} accepted {came} after {was}")
        else:
            highest[write.name] = write
        owner = owners.setdefault((write.name, write.token), write.holder)
        if owner != write.holder:
            findings.add("one owner", f"{write.name} accepted token {write.token} of {owner} and of {write.holder}")
    return findings.verdict()


def _check_one(holds: list[Hold], overlap_s: float) -> Iterator[Violation]:
    holds = sorted(holds, key=lambda hold: hold.acquired_at)
    yield from _unique(holds)
    yield from _rising(holds)
    yield from _valid(holds, overlap_s)
    yield from _alone(holds, overlap_s)


def _unique(holds: list[Hold]) -> Iterator[Violation]:
    owners: dict[int, Hold] = {}
    for hold in holds:
        other = owners.setdefault(hold.token, hold)
        if other is not hold:
            yield Violation("unique", f"{hold.name}: token {hold.token} was given to {other} and to {hold}")


def _rising(holds: list[Hold]) -> Iterator[Violation]:
    """An equal token is `_unique`'s finding."""
    highest: Hold | None = None
    for hold in holds:
        if highest is not None and hold.token < highest.token:
            yield Violation("rising", f"{hold.name}: {hold} came after {highest}")
        else:
            highest = hold


def _valid(holds: list[Hold], overlap_s: float) -> Iterator[Violation]:
    for hold in holds:
        if hold.valid_until is not None and hold.end > hold.valid_until + overlap_s:
            sentence = f"{hold.name}: {hold} believed beyond its lease, which ended at {hold.valid_until:.6f}"
            yield Violation("valid", sentence)


def _alone(holds: list[Hold], overlap_s: float) -> Iterator[Violation]:
    """One pass in order of acquisition: the hold that ends last is the one to be in the way."""
    longest: Hold | None = None
    for hold in holds:
        if longest is not None and min(longest.end, hold.end) - hold.acquired_at > overlap_s:
            yield Violation("alone", f"{hold.name}: {longest} and {hold} believed at once")
        if longest is None or hold.end > longest.end:
            longest = hold
