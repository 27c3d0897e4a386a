"""How surprising: sign tests against a margin, a permutation test for trends, Holm's correction.

Pure functions of numbers; only the permutation test needs numpy, and only when it is called. Reports
reach these through `harness.stats`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.intervals import binomial_tail

if TYPE_CHECKING:
    import numpy as np

PERMUTATIONS = 9_999
_ALL_TO = 7  # 7! = 5040 permutations are all tried; beyond, a seeded sample


def sign_test_p(log_ratios: Sequence[float], margin: float) -> float:
    """The smallest two-sided level at which an order-statistic interval of `log_ratios` is conclusive.

    `margin` is δ as a proportion. Conclusive is an interval of the median that lies wholly above
    log(1+δ), wholly below −log(1+δ), or wholly inside (two one-sided tests). 1.0 for no data.
    """
    n, edge = len(log_ratios), math.log1p(margin)
    if n == 0:
        return 1.0
    above = binomial_tail(sum(value > edge for value in log_ratios), n)
    below = binomial_tail(sum(value < -edge for value in log_ratios), n)
    inside = max(
        binomial_tail(sum(value > -edge for value in log_ratios), n),
        binomial_tail(sum(value < edge for value in log_ratios), n),
    )
    return min(1.0, 2 * min(above, below, inside))


def blocks_needed(claims: int, alpha: float = 0.05) -> int:
    """The fewest blocks with which all of `claims` comparisons can still be conclusive after Holm's correction.

    With unanimous blocks the sign test reaches 2·½ⁿ, and the first of m claims must reach α/m.
    """
    return max(6, math.ceil(math.log2(2 * max(1, claims) / alpha)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of `p_values`, in their order: compare each with α as it is."""
    adjusted, floor = [1.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        floor = max(floor, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, floor)
    return adjusted


def association_p(x: Sequence[float], y: Sequence[float], *, seed: int = 0) -> float:
    """The p-value of no monotone association between x and y: Spearman's correlation, permuted.

    Exact for up to 7 points, otherwise from a seeded sample of permutations (never below 1/10000).
    1.0 when either side is constant or there are fewer than 4 points.
    """
    import numpy as np

    first, second = _ranks(x), _ranks(y)
    if len(x) < 4 or not first.any() or not second.any():
        return 1.0
    seen = abs(first @ second) - 1e-9
    if len(x) <= _ALL_TO:
        every = np.array(list(itertools.permutations(second)))
        return float(np.mean(np.abs(every @ first) >= seen))
    shuffled = np.random.default_rng(seed).permuted(np.tile(second, (PERMUTATIONS, 1)), axis=1)
    return float((1 + np.sum(np.abs(shuffled @ first) >= seen)) / (PERMUTATIONS + 1))


def _ranks(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    import numpy as np

    _, inverse, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2  # tied values share the mean of their ranks
    ranks: np.ndarray[tuple[int], np.dtype[np.float64]] = middle[inverse] - (len(values) + 1) / 2
    return ranks
