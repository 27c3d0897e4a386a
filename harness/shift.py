"""How far one sample lies from another that it is not paired with: Hodges and Lehmann's estimate, exact rank intervals.

Pure functions of numbers, assuming nothing of the distributions but that they differ by a shift. For paired blocks
of one run `harness.stats` does better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist, median

from harness.intervals import Interval

_EXACT_TO = 60  # values of both samples together; beyond, the normal approximation is as good


def shift_interval(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """`after` − `before`: the median of all pairs' differences, between the two of them that a rank test keeps.

    None when no interval of that confidence exists (fewer than 4 on each side at 95 %). `n` is the smaller sample's.
    """
    differences = sorted(late - early for late in after for early in before)
    pairs = len(differences)
    if not pairs:
        return None
    rest = (1 - confidence) / 2
    outside = -1  # the largest U that is still less likely than `rest`
    reached = 0.0
    for statistic, tail in _tails(len(before), len(after)):
        if tail > rest + 1e-12:
            break
        outside, reached = statistic, tail
    if outside < 0:
        return None
    low, high = differences[outside], differences[pairs - 1 - outside]
    return Interval(median(differences), low, high, 1 - 2 * reached, min(len(before), len(after)))


def beyond_p(before: Sequence[float], after: Sequence[float], margin: float) -> float:
    """The two-sided level at which `after` lies more than `margin` above `before`, or more than that below; 1 if never.

    Ties count half, which makes neither side more likely.
    """
    if not before or not after:
        return 1.0
    smaller = min(_statistic(before, after, margin), _statistic(after, before, margin))
    tail = next((tail for statistic, tail in _tails(len(before), len(after)) if statistic >= smaller), 1.0)
    return min(1.0, 2 * tail)


def _statistic(low: Sequence[float], high: Sequence[float], margin: float) -> float:
    """How many pairs speak against `high` lying more than `margin` above `low`."""
    against = sum(up - down < margin for up in high for down in low)
    return against + sum(up - down == margin for up in high for down in low) / 2


def _tails(first: int, second: int) -> list[tuple[int, float]]:
    """(u, P(U ≤ u)) of Mann and Whitney's U, smallest first, up to its middle."""
    if first + second > _EXACT_TO:
        spread = math.sqrt(first * second * (first + second + 1) / 12)
        normal = NormalDist(first * second / 2, spread)
        return [(u, normal.cdf(u + 0.5)) for u in range(first * second // 2 + 1)]
    counts = _counts(first, second)
    total, below, tails = math.comb(first + second, first), 0, []
    for u in range(first * second // 2 + 1):
        below += counts[u]
        tails.append((u, below / total))
    return tails


@lru_cache
def _counts(first: int, second: int) -> tuple[int, ...]:
    """In how many orders of the two samples U is 0, 1, 2, …: the coefficients of a Gaussian binomial."""
    counts = [0] * (first * second + 1)
    counts[0] = 1
    for part in range(1, first + 1):
        for u in range(len(counts) - 1, second + part - 1, -1):
            counts[u] -= counts[u - second - part]
        for u in range(part, len(counts)):
            counts[u] += counts[u - part]
    return tuple(counts)
