"""What the rules do in the long run, on data whose truth is known. Fixed seeds; bounds of three standard errors."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest

from harness.intervals import bootstrap_interval, median_interval, theil_sen
from harness.stats import (
    Refusal,
    Series,
    StopRule,
    Verdict,
    aa_outside,
    compare,
    correct,
    ratio,
    relative_half_width,
    warming,
)
from workloads.metric import Better, Metric

METRIC = Metric("simulated", "s", Better.LOWER, "drawn from a known distribution")
Draw = Callable[[random.Random], float]


def _bimodal(rng: random.Random) -> float:
    return rng.gauss(0.2 if rng.random() < 0.3 else 0.0, 0.01)


# Logarithms of a sample, each with its true median.
NOISES: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng: rng.gauss(0, 0.05), 0.0),
    "lognormal": (lambda rng: math.exp(rng.gauss(0, 1)) / 20, 0.05),
    "heavy-tailed": (lambda rng: 0.02 * math.tan(math.pi * (rng.random() - 0.5)), 0.0),
    "bimodal": (_bimodal, 0.0057),
}


def three_sigma(rate: float, trials: int) -> float:
    return 3 * math.sqrt(rate * (1 - rate) / trials)


@pytest.mark.parametrize("n", [6, 10, 23])
@pytest.mark.parametrize("noise", NOISES)
def test_median_interval_covers_as_often_as_it_says(noise: str, n: int) -> None:
    draw, _ = NOISES[noise]
    rng, trials = random.Random(f"{noise} {n}"), 1500
    truth = median(draw(random.Random(k)) for k in range(40_001)) if noise == "bimodal" else NOISES[noise][1]
    hits, said = 0, 0.0
    for _ in range(trials):
        interval = median_interval([draw(rng) for _ in range(n)])
        assert interval is not None
        hits += interval.low <= truth <= interval.high
        said = interval.confidence
    assert hits / trials == pytest.approx(said, abs=three_sigma(said, trials) + 0.005)


@pytest.mark.parametrize("noise", ["normal", "lognormal", "heavy-tailed"])
def test_bootstrap_covers_beyond_thirty_blocks(noise: str) -> None:
    draw, truth = NOISES[noise]
    rng, trials, hits = random.Random(noise), 300, 0
    for trial in range(trials):
        interval = bootstrap_interval([draw(rng) for _ in range(36)], seed=trial, resamples=999)
        hits += interval.low <= truth <= interval.high
    assert 0.95 - three_sigma(0.95, trials) <= hits / trials <= 0.995


def test_theil_sen_covers_the_slope_under_heavy_tails() -> None:
    rng, trials, hits = random.Random(5), 600, 0
    draw, _ = NOISES["heavy-tailed"]
    for _ in range(trials):
        x = [float(k) for k in range(12)]
        slope = theil_sen(x, [4 * value + draw(rng) for value in x])
        assert slope is not None
        hits += slope.low <= 4 <= slope.high
    assert hits / trials >= 0.95 - three_sigma(0.95, trials)


def _walk(rng: random.Random, blocks: int) -> list[float]:
    place, path = 0.0, []
    for _ in range(blocks):
        place += rng.gauss(0, 0.1)
        path.append(place)
    return path


def test_pairing_in_blocks_covers_on_a_drifting_host_where_unpaired_data_would_not() -> None:
    rng, trials, hits, spread, drifted = random.Random(6), 600, 0, 0.0, 0.0
    for _ in range(trials):
        host = _walk(rng, 10)
        first = {block: math.exp(level + rng.gauss(0, 0.01)) for block, level in enumerate(host)}
        second = {block: 2 * math.exp(level + rng.gauss(0, 0.01)) for block, level in enumerate(host)}
        interval = ratio(first, second).interval
        assert interval is not None
        hits += interval.low <= 2 <= interval.high
        spread += relative_half_width(interval) / trials
        drifted += relative_half_width(median_interval(list(first.values()))) / trials
    assert hits / trials >= 0.95 - three_sigma(0.95, trials)
    assert spread < drifted / 5


def _series(label: str, rng: random.Random, blocks: int, factor: float, noise: str, order: list[int]) -> Series:
    draw, _ = NOISES[noise]
    values = {block: factor * math.exp(draw(rng)) for block in range(blocks)}
    return Series(label=label, values=values, positions=dict(enumerate(order)))


@pytest.mark.parametrize("noise", NOISES)
def test_a_against_a_is_rarely_called_different_or_refused(noise: str) -> None:
    rng, trials, different, refused = random.Random(noise), 250, 0, 0
    for trial in range(trials):
        orders = [rng.sample(range(4), 4) for _ in range(10)]
        one, two, three, four = (
            _series(str(place), rng, 10, 1.0, noise, [order[place] for order in orders]) for place in range(4)
        )
        comparison = compare(METRIC, one, two, aa=ratio(three.values, four.values), seed=trial)
        different += comparison.verdict in (Verdict.FASTER, Verdict.SLOWER)
        refused += comparison.refusal is not None
    assert different / trials <= 0.01
    # The gate of a lone control may refuse 1 in 20 (its interval is one at 95 %), drift twice and order once 1 in 100.
    assert refused / trials <= 0.07 + three_sigma(0.07, trials)


@pytest.mark.parametrize("noise", NOISES)
def test_all_controls_of_a_run_are_inside_nineteen_times_in_twenty(noise: str) -> None:
    rng, trials, controls, lone, alarms = random.Random(noise), 150, 25, 0, 0

    def visit() -> dict[int, float]:
        return {block: math.exp(max(-5, min(5, NOISES[noise][0](rng)))) for block in range(12)}

    for _ in range(trials):
        effects = [ratio(visit(), visit()) for _ in range(controls)]
        lone += any(aa_outside(effect, 1) for effect in effects)
        alarms += any(aa_outside(effect, controls) for effect in effects)
    assert alarms / trials <= 0.05 + three_sigma(0.05, trials)
    assert alarms < lone  # what a look at each alone would say


def test_a_against_a_on_a_drifting_host_is_rarely_called_different() -> None:
    rng, trials, different = random.Random(12), 250, 0
    for trial in range(trials):
        host = _walk(rng, 10)
        one, two, three, four = (
            Series(
                label=str(place),
                values={block: math.exp(level + rng.gauss(0, 0.02)) for block, level in enumerate(host)},
            )
            for place in range(4)
        )
        comparison = compare(METRIC, one, two, aa=ratio(three.values, four.values), seed=trial)
        different += comparison.verdict in (Verdict.FASTER, Verdict.SLOWER)
    assert different / trials <= 0.01


def _pair(rng: random.Random, blocks: int) -> tuple[Series, Series]:
    """The same thing twice, 1 % noise, in random order, with five iterations a block that do not move."""
    orders = [rng.sample(range(2), 2) for _ in range(blocks)]

    def side(place: int) -> Series:
        iterations = [[math.exp(rng.gauss(0, 0.01)) for _ in range(5)] for _ in range(blocks)]
        return Series(
            label=str(place),
            values={block: median(values) for block, values in enumerate(iterations)},
            positions={block: order[place] for block, order in enumerate(orders)},
            warming={block: warming(values) or 0.0 for block, values in enumerate(iterations)},
        )

    return side(0), side(1)


def _drifting(one: Series, two: Series) -> tuple[Series, Series]:
    return one, replace(two, values={block: value * 1.02**block for block, value in two.values.items()})


def _host_drifting(one: Series, two: Series) -> tuple[Series, Series]:
    sides = [replace(each, values={b: value * 1.02**b for b, value in each.values.items()}) for each in (one, two)]
    return sides[0], sides[1]


def _ordered(one: Series, two: Series) -> tuple[Series, Series]:
    slow_second = {b: value * (1.06 if two.positions[b] else 1.0) for b, value in two.values.items()}
    return one, replace(two, values=slow_second)


def _warming_up(one: Series, two: Series) -> tuple[Series, Series]:
    return one, replace(two, warming={block: change - 0.08 for block, change in two.warming.items()})


@pytest.mark.parametrize(
    ("refusal", "spoil", "blocks", "power"),
    [
        (Refusal.DRIFT, _drifting, 10, 0.95),
        (Refusal.DRIFT, _host_drifting, 10, 0.9),
        (Refusal.ORDER_EFFECT, _ordered, 20, 0.9),
        (Refusal.UNSTEADY, _warming_up, 10, 0.95),
    ],
)
def test_each_gate_refuses_what_it_is_for_and_rarely_anything_else(
    refusal: Refusal, spoil: Callable[[Series, Series], tuple[Series, Series]], blocks: int, power: float
) -> None:
    rng, trials, caught, false = random.Random(refusal), 120, 0, 0
    for trial in range(trials):
        one, two = _pair(rng, blocks)
        false += compare(METRIC, one, two, seed=trial).refusal is refusal
        one, two = spoil(one, two)
        caught += compare(METRIC, one, two, seed=trial).refusal is refusal
    assert false / trials <= 0.02 + three_sigma(0.02, trials)
    assert caught / trials >= power


def test_a_difference_at_the_margin_is_rarely_called_either_and_never_more_often_than_promised() -> None:
    rng, trials, equal, apart = random.Random(8), 600, 0, 0
    for trial in range(trials):
        one = {block: math.exp(rng.gauss(0, 0.005)) for block in range(10)}
        two = {block: 1.03 * math.exp(rng.gauss(0, 0.005)) for block in range(10)}
        comparison = compare(METRIC, Series(label="a", values=one), Series(label="b", values=two), seed=trial)
        equal += comparison.verdict is Verdict.EQUIVALENT
        apart += comparison.verdict in (Verdict.FASTER, Verdict.SLOWER)
    for wrong in (equal, apart):
        assert wrong / trials <= 0.025 + three_sigma(0.025, trials)


def test_a_clear_difference_is_nearly_always_found() -> None:
    rng, trials, found = random.Random(9), 200, 0
    for trial in range(trials):
        one = {block: math.exp(rng.gauss(0, 0.03)) for block in range(10)}
        two = {block: 1.25 * math.exp(rng.gauss(0, 0.03)) for block in range(10)}
        comparison = compare(METRIC, Series(label="a", values=one), Series(label="b", values=two), seed=trial)
        found += comparison.verdict is Verdict.SLOWER
    assert found / trials >= 0.95


def test_stopping_on_precision_does_not_manufacture_differences() -> None:
    rng, trials, different, rule = random.Random(10), 300, 0, StopRule(target=0.02)
    for trial in range(trials):
        one: dict[int, float] = {}
        two: dict[int, float] = {}
        widths: list[float] = []
        for block in range(31):
            if rule.looks(block):
                widths.append(relative_half_width(ratio(one, two).interval))
                if rule.should_stop(widths):
                    break
            one[block], two[block] = math.exp(rng.gauss(0, 0.04)), math.exp(rng.gauss(0, 0.04))
        interval = ratio(one, two, seed=trial).interval
        assert interval is not None
        different += not interval.low <= 1 <= interval.high
    assert different / trials <= 0.05 + three_sigma(0.05, trials)


def test_holm_keeps_false_claims_of_a_whole_report_rare_where_each_alone_would_not() -> None:
    rng, trials, false, uncorrected = random.Random(11), 80, 0, 0
    claimed = (Verdict.FASTER, Verdict.SLOWER)
    for trial in range(trials):
        family = []
        for claim in range(20):  # each exactly at the margin, where a false claim is likeliest
            one = {block: math.exp(rng.gauss(0, 0.1)) for block in range(6)}
            two = {block: 1.03 * math.exp(rng.gauss(0, 0.1)) for block in range(6)}
            sides = (Series(label=label, values=values) for label, values in (("a", one), ("b", two)))
            family.append(compare(METRIC, *sides, seed=trial * 20 + claim))
        uncorrected += any(each.verdict in claimed for each in family)
        false += any(each.verdict in claimed for each in correct(family))
    assert false / trials <= 0.05
    assert uncorrected / trials > 0.05 + three_sigma(0.05, trials)


def test_pooling_iterations_of_one_boot_would_lie_where_one_value_a_block_does_not() -> None:
    rng, trials, pooled, honest = random.Random(12), 300, 0, 0
    for _ in range(trials):
        boots = [[rng.gauss(0, 0.05) + boot for _ in range(20)] for boot in (rng.gauss(0, 0.1) for _ in range(10))]
        many, few = (
            median_interval([value for boot in boots for value in boot]),
            median_interval(list(map(median, boots))),
        )
        assert many is not None
        assert few is not None
        pooled += not many.low <= 0 <= many.high
        honest += not few.low <= 0 <= few.high
    assert pooled / trials > 0.3
    assert honest / trials <= 0.05 + three_sigma(0.05, trials)
