"""Intervals and classes, against hand-worked cases, exact binomials and scipy."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats as scipy_stats

from harness.intervals import (
    Interval,
    Outlier,
    binomial_tail,
    bootstrap_interval,
    median_interval,
    quantile,
    quantile_interval,
    relative_half_width,
    tail,
    theil_sen,
    tukey_classes,
)

numbers = some.floats(-1e6, 1e6)


@pytest.mark.parametrize("n", range(6))
def test_no_median_interval_below_six_values(n: int) -> None:
    assert median_interval([1.0] * n) is None


def test_six_values_give_their_extremes_at_96_9_percent() -> None:
    interval = median_interval([6.0, 2.0, 4.0, 1.0, 5.0, 3.0])
    assert interval is not None
    assert (interval.estimate, interval.low, interval.high, interval.n) == (3.5, 1.0, 6.0, 6)
    assert interval.confidence == pytest.approx(1 - 2 / 64)


@pytest.mark.parametrize(("n", "low", "high"), [(8, 1, 8), (9, 2, 8), (10, 2, 9), (20, 6, 15), (30, 10, 21)])
def test_median_interval_takes_the_tabled_order_statistics(n: int, low: int, high: int) -> None:
    interval = median_interval([float(k) for k in range(1, n + 1)])
    assert interval is not None
    assert (interval.low, interval.high) == (low, high)


@given(some.lists(numbers, min_size=6, max_size=80), some.sampled_from([0.8, 0.9, 0.95, 0.96]))
def test_interval_holds_its_estimate_and_reaches_the_confidence(values: list[float], confidence: float) -> None:
    interval = median_interval(values, confidence)
    assert interval is not None
    assert interval.low <= interval.estimate <= interval.high
    assert confidence - 1e-9 <= interval.confidence <= 1


def test_median_interval_of_many_values_does_not_underflow() -> None:
    interval = median_interval([float(k) for k in range(5000)])
    assert interval is not None
    assert 2400 < interval.low < 2499.5 < interval.high < 2600
    assert interval.confidence == pytest.approx(0.95, abs=0.002)


@pytest.mark.parametrize(("n", "q"), [(100, 0.9), (1000, 0.99), (60, 0.25)])
def test_quantile_interval_agrees_with_scipy(n: int, q: float) -> None:
    rng = random.Random(n)
    values = [rng.gauss(0, 1) for _ in range(n)]
    ours = quantile_interval(values, q)
    theirs: Any = scipy_stats.quantile_test(values, p=q).confidence_interval(0.95)
    assert ours is not None
    assert (ours.low, ours.high) == (theirs.low, theirs.high)


def test_binomial_tail_is_exact() -> None:
    assert binomial_tail(9, 10) == 11 / 1024
    assert binomial_tail(0, 7) == 1.0
    assert binomial_tail(2000, 2000) == pytest.approx(0.0, abs=1e-300)


@given(some.lists(numbers, min_size=1, max_size=30), some.floats(0.01, 0.99))
def test_quantile_lies_within_the_values(values: list[float], q: float) -> None:
    assert min(values) <= quantile(values, q) <= max(values)


def test_bootstrap_is_the_same_for_the_same_seed_and_only_then() -> None:
    rng = random.Random(3)
    values = [rng.gauss(10, 1) for _ in range(40)]
    first, again, other = (bootstrap_interval(values, seed=seed, resamples=101) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_bootstrap_and_order_statistics_agree_roughly() -> None:
    rng = random.Random(4)
    values = [rng.gauss(10, 1) for _ in range(200)]
    bootstrap, exact = bootstrap_interval(values), median_interval(values)
    assert exact is not None
    assert bootstrap.low == pytest.approx(exact.low, abs=0.1)
    assert bootstrap.high == pytest.approx(exact.high, abs=0.1)


@pytest.mark.parametrize("n", [6, 12, 40, 41, 120])
def test_theil_sen_agrees_with_scipy(n: int) -> None:
    rng = random.Random(n)
    x = [float(k) for k in range(n)]
    y = [3 * value + rng.gauss(0, 5) for value in x]
    ours, theirs = theil_sen(x, y), scipy_stats.theilslopes(y, x)
    assert ours is not None
    assert ours.estimate == pytest.approx(theirs.slope)
    slopes = sorted((y[i] - y[j]) / (x[i] - x[j]) for i in range(n) for j in range(i))
    assert abs(slopes.index(ours.low) - slopes.index(theirs.low_slope)) <= 1  # exact against normal approximation
    assert abs(slopes.index(ours.high) - slopes.index(theirs.high_slope)) <= 1


def test_theil_sen_ignores_a_quarter_of_wild_points() -> None:
    x = [float(k) for k in range(20)]
    y = [2 * value + (1000 if k % 5 == 0 else 0) for k, value in enumerate(x)]
    slope = theil_sen(x, y)
    assert slope is not None
    assert slope.estimate == pytest.approx(2)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1, 2, 3, 4], [1, 2, 3, 4]), ([7] * 9, list(range(9)))])
def test_theil_sen_without_an_interval_is_none(x: list[float], y: list[float]) -> None:
    assert theil_sen(x, y) is None


def test_theil_sen_exact_confidence_of_five_points() -> None:
    slope = theil_sen([1, 2, 3, 4, 5], [1.0, 2.1, 2.9, 4.2, 5.3])
    assert slope is not None
    assert slope.confidence == pytest.approx(1 - 2 / 120)
    assert [slope.low, slope.high] == pytest.approx([0.8, 1.3])


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(1.0, 1.21, 0.1), (2.0, 2.0, 0.0), (0.0, 1.0, math.inf), (-1.0, 1.0, math.inf)]
)
def test_relative_half_width(low: float, high: float, expected: float) -> None:
    assert relative_half_width(Interval(1.0, low, high, 0.95, 10)) == pytest.approx(expected)


def test_relative_half_width_of_no_interval_is_infinite() -> None:
    assert relative_half_width(None) == math.inf


@pytest.mark.parametrize(("q", "needed"), [(0.9, 100), (0.95, 200), (0.99, 1000), (0.999, 10000)])
def test_tail_needs_ten_values_beyond_it(q: float, needed: int) -> None:
    short, enough = tail([1.0] * (needed - 1), q), tail([1.0] * needed, q)
    assert short.value is None
    assert f"needs {needed} values" in short.reason
    assert (enough.value, enough.reason) == (1.0, "")


def test_tukey_classes_by_hand() -> None:
    values = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 21.0, 40.0]  # box 12–16, fences 6–22 and 0–28
    assert tukey_classes(values) == [Outlier.NONE] * 8 + [Outlier.SEVERE]
    values[7] = 22.5
    assert tukey_classes(values)[7:] == [Outlier.MILD, Outlier.SEVERE]
    values[0] = -0.5
    assert tukey_classes(values)[0] is Outlier.SEVERE
    assert tukey_classes([1.0, 1.0, 99.0]) == [Outlier.NONE] * 3
    assert tukey_classes([1.0]) == [Outlier.NONE]


def test_runner_reaches_the_order_statistics_without_numpy() -> None:
    code = "import sys, harness.stats as s; s.median_interval([1.0] * 9); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
