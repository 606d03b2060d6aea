"""Elections and locks: one holder at a time, and tokens for fencing."""

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
    """A period in which `holder` believed that it held `name`: from `acquired_at` to `until`, in monotonic seconds.

    `until` is the time of the release, or when it stopped believing; None if it believed to the end of the history.
    `valid_until` is the end of its lease by its own calculation after the last renewal, if known.
    """

    name: str
    holder: str
    token: int
    acquired_at: float
    until: float | None = None
    valid_until: float | None = None

    def __post_init__(self) -> None:
        if self.until is not None and self.until < self.acquired_at:
            raise SettingsError(f"{self.holder} stopped holding {self.name} before it started: use one monotonic clock")

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
    """A write that the resource `name` accepted, with its token. Records are in the order in which the resource
    accepted them."""

    name: str
    holder: str
    token: int


def check_exclusion(holds: Iterable[Hold], *, overlap_s: float = 0.0) -> Verdict:
    """Whether, for each lock, tokens are unique and increase in the order of acquisition, no holder believed beyond its
    lease, and no two believed at the same time.

    `overlap_s` is the tolerance for two simultaneous beliefs, and for a belief beyond the lease: 0 for a lock whose
    holder checks its validity, math.inf where holding is only a hint and tokens decide (`run.leads`). Limit: it checks
    the beliefs that holders recorded; `check_fencing` checks the resource behind the lock.
    """
    if not overlap_s >= 0:
        raise SettingsError(f"overlap_s is {overlap_s:g}: it must be at least 0")
    by_name: dict[str, list[Hold]] = {}
    for hold in holds:
        by_name.setdefault(hold.name, []).append(hold)
    findings = Findings("exclusion")
    for name in sorted(by_name):
        findings.checked += len(by_name[name])
        findings.extend(_check_one(by_name[name], overlap_s))
    return findings.verdict()


def check_fencing(accepted: Iterable[Accepted]) -> Verdict:
    """Whether each resource accepted no token below the highest it had seen, and each token from one holder only.

    Limit: it does not find writes that were refused although they had the highest token.
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
    """Tokens that are too low. `_unique` finds equal ones."""
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
    """Overlaps, in one pass in order of acquisition: only the hold that ends last can overlap."""
    longest: Hold | None = None
    for hold in holds:
        if longest is not None and min(longest.end, hold.end) - hold.acquired_at > overlap_s:
            yield Violation("alone", f"{hold.name}: {longest} and {hold} believed at once")
        if longest is None or hold.end > longest.end:
            longest = hold
