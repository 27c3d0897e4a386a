"""p-values, against exact counts, the intervals they mirror, and scipy."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats as scipy_stats

from harness.intervals import median_interval
from harness.significance import association_p, blocks_needed, holm, sign_test_p


@given(
    some.lists(some.floats(-0.3, 0.3), min_size=6, max_size=30),
    some.sampled_from([0.03, 0.1]),
)
def test_sign_test_is_conclusive_exactly_when_the_interval_is(logs: list[float], margin: float) -> None:
    interval, edge = median_interval(logs), math.log1p(margin)
    assert interval is not None
    outside = interval.low > edge or interval.high < -edge
    inside = -edge < interval.low and interval.high < edge
    assert (sign_test_p(logs, margin) <= 0.05) == (outside or inside)


def test_sign_test_of_no_data_says_nothing() -> None:
    assert sign_test_p([], 0.03) == 1.0


def test_sign_test_of_unanimous_blocks() -> None:
    assert sign_test_p([0.5] * 6, 0.03) == pytest.approx(2 / 64)
    assert sign_test_p([-0.5] * 7, 0.03) == pytest.approx(2 / 128)
    assert sign_test_p([0.0] * 8, 0.03) == pytest.approx(2 / 256)


@pytest.mark.parametrize(("claims", "blocks"), [(0, 6), (1, 6), (2, 7), (5, 8), (12, 9), (30, 11)])
def test_blocks_needed_lets_unanimous_claims_survive_holm(claims: int, blocks: int) -> None:
    assert blocks_needed(claims) == blocks
    assert max(holm([2 * 0.5**blocks] * claims), default=0.0) <= 0.05
    if blocks > 6:
        assert max(holm([2 * 0.5 ** (blocks - 1)] * claims)) > 0.05


def test_blocks_needed_never_falls_below_the_fewest_for_an_interval() -> None:
    assert blocks_needed(1, alpha=0.5) == 6


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(some.lists(some.floats(0, 1), max_size=20))
def test_holm_never_lowers_and_never_falls_below_bonferroni_of_the_least(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))
    if p_values:
        assert min(adjusted) == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_association_is_exact_for_few_points() -> None:
    assert association_p([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 720)
    assert association_p([1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]) == pytest.approx(2 / 720)


@pytest.mark.parametrize("pull", [0.0, 0.5, 1.0])
def test_association_agrees_with_scipy(pull: float) -> None:
    rng = random.Random(11)
    x = [rng.random() for _ in range(25)]
    y = [rng.random() + pull * value for value in x]
    assert association_p(x, y) == pytest.approx(scipy_stats.spearmanr(x, y).pvalue, abs=0.02)


@pytest.mark.parametrize(("x", "y"), [([], []), ([1, 2, 3], [1, 2, 3]), ([1] * 8, range(8)), (range(8), [1] * 8)])
def test_association_of_too_little_or_constant_data_is_nothing(x: list[float], y: list[float]) -> None:
    assert association_p(list(x), list(y)) == 1.0


def test_association_handles_ties() -> None:
    assert association_p([1, 1, 1, 1, 2, 2, 2, 2], [5, 6, 5, 6, 9, 8, 9, 8]) == pytest.approx(2 / 70, abs=0.01)
