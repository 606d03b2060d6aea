"""Robust statistics over a bounded series of points, each of one or several steps. Pure.

Losses are compared on a log scale: a rise from 2.5 to 5 weighs as much as one from 0.25 to 0.5. If the series or the
value is zero or negative, the comparison is linear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final, Literal, TypeAlias

from instep.tuner.sample import Window

SPAN: Final = 128
"""Steps that a point is compared with."""
LEAST_REFERENCE: Final = 64
"""Steps that must be known before anything is judged."""
MAX_ENTRIES: Final = 256
"""Entries of a series at most."""
OUT_Z: Final = 6.0
"""Values that are further from the median stand out: they do not count as normal."""
RELEARN_STEPS: Final = 200
"""A value that stood out counts as normal after so many steps: the run may have changed for good."""
LEAST_SIGMA: Final = 0.005
"""Noise of one step, as a share of the value: no run is taken to be quieter than that."""
LARGEST: Final = 1e30
"""Larger values count as this one: sums of them cannot overflow."""
_MAD: Final = 1.4826
"""Turns the median absolute deviation of normal noise into its standard deviation."""
_MEDIAN_ERROR: Final = 1.2533
"""Standard error of a median of normal noise, in standard errors of the mean."""

Figure: TypeAlias = Literal["mean", "max"]


def usable(value: float | None) -> float | None:
    """The value, no larger than `LARGEST`; None if it is missing or not finite."""
    if value is None or value != value or value in (math.inf, -math.inf):
        return None
    return float(max(-LARGEST, min(LARGEST, value)))


@dataclass(frozen=True, slots=True)
class Entry:
    """The values of one metric in steps `first` to `last`; `steps` of them have a value."""

    first: int
    last: int
    steps: int
    mean: float
    max: float
    out: bool = False
    """Whether it stood out: it is left out of references for `RELEARN_STEPS`."""


Series: TypeAlias = tuple[Entry, ...]
"""One metric's entries in the order of their steps."""


def entry_of(first: int, last: int, window: Window) -> Entry | None:
    """None if the window has no finite value."""
    mean = usable(window.mean) if window.count > 0 else None
    if mean is None:
        return None
    largest = usable(window.max)
    return Entry(first, last, steps_of(first, last, window), mean, mean if largest is None else max(mean, largest))


def steps_of(first: int, last: int, window: Window) -> int:
    """How many steps of a point have a value of this metric."""
    steps = last - first + 1
    return max(1, min(steps, window.count, steps if window.steps is None else window.steps))


def appended(series: Series, entry: Entry) -> Series:
    return (*series[-(MAX_ENTRIES - 1) :], entry)


def before(series: Series, step: int) -> Series:
    """The entries that end before `step`."""
    return tuple(entry for entry in series if entry.last < step)


@dataclass(frozen=True, slots=True)
class Reference:
    """What a series looked like: its median, and the noise of one step around it."""

    center: float
    sigma: float
    logarithmic: bool
    steps: int
    """How many steps it is made from."""

    def z(self, value: float, steps: int = 1) -> float:
        """By how many standard deviations the mean of `steps` steps differs from the median."""
        return (self._scaled(value) - self.center) / self.sigma_of(steps)

    def sigma_of(self, steps: float) -> float:
        """The noise of a mean of `steps` steps."""
        return max(self.sigma / math.sqrt(max(steps, 1)), self._floor)

    def error_of_median(self, entries: int, steps: float) -> float:
        """The standard error of a median of `entries` entries of `steps` steps each."""
        return _MEDIAN_ERROR * self.sigma_of(steps) / math.sqrt(max(entries, 1))

    def rise(self, value: float) -> float:
        """By which share the value is above the median; below zero if it is lower."""
        difference = self._scaled(value) - self.center
        if self.logarithmic:
            return math.expm1(min(difference, 700.0))
        return difference / max(abs(self.center), 1e-12)

    def difference(self, value: float) -> float:
        """The distance from the median, on the scale of the reference."""
        return self._scaled(value) - self.center

    def value_at(self, z: float, steps: int = 1) -> float:
        """The mean of `steps` steps that has this z."""
        scaled = self.center + z * self.sigma_of(steps)
        return math.exp(min(scaled, 700.0)) if self.logarithmic else scaled

    def raised(self, share: float) -> float:
        """The value that is above the median by that share of it."""
        return self.median + share * abs(self.median)

    @property
    def median(self) -> float:
        return math.exp(self.center) if self.logarithmic else self.center

    @property
    def _floor(self) -> float:
        return LEAST_SIGMA if self.logarithmic else max(LEAST_SIGMA * abs(self.center), 1e-12)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value


def reference(series: Series, value: float, step: int, span: int = SPAN, figure: Figure = "mean") -> Reference | None:
    """What `value`, seen at `step`, is compared with: the entries before it, without those that stood out.

    Takes the newest entries that cover `span` steps, but at least 32 entries if there are so many. None if they cover
    fewer than `LEAST_REFERENCE` steps.
    """
    taken: list[Entry] = []
    covered = 0
    for entry in reversed(series):
        if entry.last >= step or (entry.out and step - entry.first < RELEARN_STEPS):
            continue
        if covered >= span and len(taken) >= 32:
            break
        taken.append(entry)
        covered += entry.steps
    if covered < min(LEAST_REFERENCE, span) or len(taken) < 8:
        return None
    values = [getattr(entry, figure) for entry in taken]
    logarithmic = value > 0 and min(values) > 0
    if logarithmic:
        values = [math.log(item) for item in values]
    center = median(values)
    spread = median(abs(item - center) * math.sqrt(entry.steps) for item, entry in zip(values, taken, strict=True))
    return Reference(center, _MAD * spread, logarithmic, covered)


def steps_above(entry: Entry, limit: float) -> int:
    """How many of the entry's steps were above `limit` at the least: no step was above `max`, so their sum tells.

    A single outlier among many steps counts as one, however high it was.
    """
    if entry.mean <= limit:
        return 0
    if entry.max <= entry.mean:
        return entry.steps
    share = (entry.mean - limit) / (entry.max - limit)
    return max(1, min(entry.steps, math.ceil(entry.steps * share)))


def recent(series: Series, span: int, least_entries: int) -> Series:
    """The newest entries that cover `span` steps, and at least `least_entries` of them."""
    covered = 0
    for number, entry in enumerate(reversed(series), start=1):
        covered += entry.steps
        if covered >= span and number >= least_entries:
            return series[-number:]
    return ()


def level(entries: Sequence[Entry]) -> float:
    """The median of the entries' means."""
    return median(entry.mean for entry in entries)


def marked(entry: Entry, normal: Reference | None, figure: Figure) -> Entry:
    """The entry, marked if it stands out."""
    if normal is None:
        return entry
    z = normal.z(entry.max) if figure == "max" else normal.z(entry.mean, entry.steps)
    return replace(entry, out=True) if abs(z) > OUT_Z else entry
