"""Other detectors, from their published descriptions, for comparison. Each sees every step: the mean loss of all ranks
and the norm of the gradient. The tuner sees reports."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Alarm = Callable[[float, float], bool]
"""Takes the loss and the gradient norm of one step; says whether the detector raises an alarm."""

WINDOW = 128
MIN_WINDOW = 64
MAD_TO_SD = 1.4826
"""Of a normal distribution: its standard deviation over its median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Detector:
    name: str
    source: str
    make: Callable[[], Alarm]


def _robust(limit: float, hits: int, of: int) -> Alarm:
    """`hits` of the last `of` losses are more than `limit` robust deviations above the median before them."""
    before: deque[float] = deque(maxlen=WINDOW)
    newest: deque[bool] = deque(maxlen=of)

    def alarm(loss: float, grad_norm: float) -> bool:
        high = False
        if len(before) >= MIN_WINDOW:
            middle = statistics.median(before)
            spread = MAD_TO_SD * statistics.median(abs(item - middle) for item in before)
            high = not loss <= middle + limit * max(spread, 1e-9)
        newest.append(high)
        if not high:
            before.append(loss)
        return sum(newest) >= hits

    return alarm


def _average(limit: float = 4.0, in_a_row: int = 3, share: float = 0.98) -> Alarm:
    """`in_a_row` losses lie more than `limit` deviations above a moving average; outliers do not enter it."""
    mean, variance, seen, row = 0.0, 0.0, 0, 0

    def alarm(loss: float, grad_norm: float) -> bool:
        nonlocal mean, variance, seen, row
        if seen >= MIN_WINDOW and not loss <= mean + limit * math.sqrt(variance):
            row += 1
            return row >= in_a_row
        row, seen = 0, seen + 1
        weight = max(1 - share, 1 / seen)
        apart = loss - mean
        mean += weight * apart
        variance = (1 - weight) * (variance + weight * apart * apart)
        return False

    return alarm


def _zclip(limit: float = 2.5, share: float = 0.97, start: int = 25) -> Alarm:
    """The gradient norm lies more than `limit` deviations above its moving average. An outlier enters the average as
    what it is clipped to."""
    first: list[float] = []
    mean = variance = 0.0

    def alarm(loss: float, grad_norm: float) -> bool:
        nonlocal mean, variance
        if len(first) < start:
            first.append(grad_norm)
            mean, variance = statistics.fmean(first), statistics.pvariance(first)
            return False
        deviation = math.sqrt(variance) + 1e-6
        z = (grad_norm - mean) / deviation
        outlier = not z <= limit
        counted = mean + limit * limit / z * deviation if outlier else grad_norm
        if math.isfinite(counted):
            mean = share * mean + (1 - share) * counted
            variance = share * variance + (1 - share) * (counted - mean) ** 2
        return outlier

    return alarm


def _six_deviations(limit: float = 6.0) -> Alarm:
    """The loss or the gradient norm lies more than `limit` deviations above the mean of the last 128 steps."""
    losses: deque[float] = deque(maxlen=WINDOW)
    norms: deque[float] = deque(maxlen=WINDOW)

    def above(value: float, before: Sequence[float]) -> bool:
        mean = statistics.fmean(before)
        deviation = math.sqrt(statistics.fmean((item - mean) ** 2 for item in before))
        return not value - mean <= limit * deviation

    def alarm(loss: float, grad_norm: float) -> bool:
        found = len(losses) >= MIN_WINDOW and (above(loss, losses) or above(grad_norm, norms))
        losses.append(loss)
        norms.append(grad_norm)
        return found

    return alarm


def _kill_loss_spike(times: float = 2.0, patience: int = 4, window: int = 100, cap: float = 10.0) -> Alarm:
    """More than `patience` losses in a row at `times` the mean of the window, or half of the window above `cap`."""
    losses: deque[float] = deque(maxlen=window)
    row = steps = 0

    def alarm(loss: float, grad_norm: float) -> bool:
        nonlocal row, steps
        found = False
        steps += 1
        if len(losses) == window:
            row = row + 1 if loss >= times * statistics.fmean(losses) else 0
            found = row > patience
            found |= steps >= 2 * window and sum(item > cap for item in losses) >= window / 2
        losses.append(loss)
        return found

    return alarm


def _ten_times(times: float = 10.0, start: int = 100) -> Alarm:
    """A finite loss is `times` the largest of the first 100, or of what came later and was not."""
    largest, seen = 0.0, 0

    def alarm(loss: float, grad_norm: float) -> bool:
        nonlocal largest, seen
        if not math.isfinite(loss):
            return False
        seen += 1
        if seen > start and loss >= times * largest:
            return True
        largest = max(largest, loss)
        return False

    return alarm


def _relative(rise: float = 0.2) -> Alarm:
    """The loss is 20 % above the last one that was not."""
    last = math.nan

    def alarm(loss: float, grad_norm: float) -> bool:
        nonlocal last
        known = not math.isnan(last) and not math.isnan(loss)
        if known and (math.isinf(loss) or loss >= (1 + rise) * last):
            return True
        last = loss
        return False

    return alarm


DETECTORS: tuple[Detector, ...] = (
    Detector("median/MAD z > 4, 4 of 5", "robust statistics", lambda: _robust(4.0, 4, 5)),
    Detector("median/MAD z > 6, single", "robust statistics", lambda: _robust(6.0, 1, 1)),
    Detector("moving average z > 4, 3 in a row", "common practice", _average),
    Detector("ZClip's statistic as an alarm", "arXiv 2504.02507: share 0.97, z 2.5", _zclip),
    Detector("6 standard deviations", "OLMo-core, SkipStepOptimizer: 128 steps", _six_deviations),
    Detector("KillLossSpike", "LLM Foundry, defaults", _kill_loss_spike),
    Detector("x10", "Megatron-LM, --check-for-spiky-loss", _ten_times),
    Detector("relative 0.2", "FlagScale, --auto-skip-spiky-loss", _relative),
)
