"""Estimates with their uncertainty that assume nothing of the distribution: order statistics, Theil-Sen, a bootstrap.

Pure functions of numbers; only the bootstrap needs numpy, and only when it is called. Reports reach
these through `harness.stats`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist, median, quantiles

RESAMPLES = 10_000
_EXACT_TO = 40  # beyond, the exact distribution of Kendall's S costs more than it tells


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with its interval. `confidence` is what the interval really has, not what was asked."""

    estimate: float
    low: float
    high: float
    confidence: float
    n: int


@dataclass(frozen=True, slots=True)
class Tail:
    """A percentile above the median: `q` in (0, 1), its `value` and `interval`, or the `reason` why there is none."""

    q: float
    value: float | None
    interval: Interval | None = None
    reason: str = ""


class Outlier(StrEnum):
    """Tukey's classes: beyond 1.5 interquartile ranges from the box is mild, beyond 3 severe."""

    NONE = ""
    MILD = "mild"
    SEVERE = "severe"


def _binomial(n: int, q: float) -> Iterator[float]:
    # By logarithms, because q**n underflows from about n = 1000.
    for k in range(n + 1):
        choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        yield math.exp(choose + k * math.log(q) + (n - k) * math.log1p(-q))


def binomial_tail(successes: int, n: int) -> float:
    """P(X ≥ `successes`) for X ~ Binomial(n, ½): exact, in integers."""
    return sum(math.comb(n, k) for k in range(successes, n + 1)) / (1 << n)


def quantile(values: Sequence[float], q: float) -> float:
    """The `q`-quantile of `values` (at least one), interpolated linearly between order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def quantile_interval(values: Sequence[float], q: float, confidence: float = 0.95) -> Interval | None:
    """The `q`-quantile between two order statistics that hold it with at least `confidence` (exact binomial).

    None when there are too few values for any such pair: below 6 for the median at 95 %. Holds for
    every distribution; ties only make it wider than need be.
    """
    n, rest = len(values), (1 - confidence) / 2 + 1e-12
    low, high, below_low, below_high, below = 0, 0, 0.0, 0.0, 0.0
    for k, mass in enumerate(_binomial(n, q)):
        below += mass  # P(X <= k), X = how many values lie under the true quantile
        if below <= rest:
            low, below_low = k + 1, below
        if 1 - below <= rest:
            high, below_high = k + 1, below
            break
    if low < 1 or not 1 <= high <= n:
        return None
    ordered = sorted(values)
    return Interval(quantile(ordered, q), ordered[low - 1], ordered[high - 1], below_high - below_low, n)


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The median by sign-test inversion. Six values are the fewest at 95 %: their extremes have 96.9 %."""
    return quantile_interval(values, 0.5, confidence)


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The median of `values`, one number a block, with a percentile bootstrap over blocks.

    Percentile, not BCa: the acceleration comes from a jackknife, which is inconsistent for a median.
    """
    import numpy as np

    data = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(len(data), size=(resamples, len(data)))
    medians = np.median(data[picks], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(np.median(data)), float(low), float(high), confidence, len(data))


def theil_sen(x: Sequence[float], y: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """The slope of y over x: the median of all pairs' slopes, with Sen's interval between two of them.

    None when no interval of that confidence exists (fewer than 5 points, or all x equal). The interval
    takes the points as independent around the line; residuals that hang together make it too narrow.
    """
    n = len(x)
    pairs = [(j, i) for i in range(n) for j in range(i) if x[i] != x[j]]
    slopes = sorted((y[i] - y[j]) / (x[i] - x[j]) for j, i in pairs)
    tied = [sum(t * (t - 1) * (2 * t + 5) for t in Counter(side).values()) for side in (x, y)]
    rest = (1 - confidence) / 2
    if n <= _EXACT_TO and not any(tied):
        low, outside = _inversions_within(n, rest)
        reached = 1 - 2 * outside
    else:
        spread = math.sqrt(max(0, n * (n - 1) * (2 * n + 5) - sum(tied)) / 18)
        low = math.floor((len(slopes) - NormalDist().inv_cdf(1 - rest) * spread) / 2)
        reached = confidence
    if low < 1:
        return None
    return Interval(median(slopes), slopes[low - 1], slopes[len(slopes) - low], reached, n)


def _inversions_within(n: int, rest: float) -> tuple[int, float]:
    # How many of the sorted slopes may lie under the true one: the inversions of a random permutation.
    counts = [1]
    for size in range(2, n + 1):
        wider = [0] * (len(counts) + size - 1)
        for place, count in enumerate(counts):
            for shift in range(size):
                wider[place + shift] += count
        counts = wider
    total, below, last = math.factorial(n), 0, 0.0
    for index, count in enumerate(counts):
        below += count
        if below / total > rest:
            return index, last
        last = below / total
    return 0, 0.0


def relative_half_width(interval: Interval | None) -> float:
    """Half the interval's width as a proportion of a positive quantity, on the log scale: √(high/low) − 1.

    Infinite when there is no interval or it reaches zero.
    """
    if interval is None or interval.low <= 0:
        return math.inf
    return math.sqrt(interval.high / interval.low) - 1


def tail(values: Sequence[float], q: float, confidence: float = 0.95) -> Tail:
    """The `q`-quantile where at least ten values can lie beyond it, n ≥ 10/(1−q); otherwise the reason why not."""
    needed = math.ceil(round(10 / (1 - q), 6))
    if len(values) < needed:
        return Tail(q, None, reason=f"the {100 * q:g}th percentile needs {needed} values, there are {len(values)}")
    return Tail(q, quantile(values, q), quantile_interval(values, q, confidence))


def tukey_classes(values: Sequence[float]) -> list[Outlier]:
    """The class of each value, in order. Classed values are shown, never dropped. Fewer than 4 values: none is out."""
    if len(values) < 4:
        return [Outlier.NONE] * len(values)
    first, _, third = quantiles(values, n=4, method="inclusive")
    box = third - first

    def classed(value: float) -> Outlier:
        beyond = max(first - value, value - third)
        return Outlier.SEVERE if beyond > 3 * box else Outlier.MILD if beyond > 1.5 * box else Outlier.NONE

    return [classed(value) for value in values]
