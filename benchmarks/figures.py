"""Figures: measured values and their targets. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured value. `target` is an upper bound in the same unit, None for a figure that only informs."""

    measure: str
    value: float
    unit: str = ""
    target: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The value divided by its target: at most 1 if the target is met."""
        return None if self.target is None else self.value / self.target

    @property
    def met(self) -> bool:
        return self.target is None or self.value <= self.target

    def cells(self) -> tuple[str, str, str, str, str]:
        """A row of text: measure, value, target, ratio, ok."""
        unit = f" {self.unit}" if self.unit else ""
        if self.target is None or self.ratio is None:
            return self.measure, short(self.value) + unit, "", "", ""
        ok = "yes" if self.met else "NO"
        return self.measure, short(self.value) + unit, f"≤ {short(self.target)}{unit}", f"{self.ratio:.2f}", ok


def short(value: float) -> str:
    """Three significant digits: 0.0123, 1.23, 123, 12300."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, digits):.{min(digits, 6)}f}".rstrip("0").rstrip(".") if digits else f"{value:.0f}"


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least the fraction `part` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
