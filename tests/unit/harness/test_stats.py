"""Effects, margin, verdicts and every refusal, on small data worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as some

from harness.stats import (
    Comparison,
    Effect,
    Interval,
    Refusal,
    Series,
    StopRule,
    Verdict,
    aa_outside,
    compare,
    correct,
    equivalence_margin,
    per_block,
    ratio,
    warming,
)
from workloads.metric import Better, Metric

SECONDS = Metric("startup.userland", "s", Better.LOWER, "time to the first instruction", hardware=True)
RATE = Metric("cpu.rate", "1/s", Better.HIGHER, "work per second")
BLOCKS = 10
# Ten values around 1, within 1 %, trending neither with time nor with the order below.
NOISE = (1.004, 0.996, 1.001, 1.009, 0.992, 0.999, 1.006, 0.994, 1.003, 0.997)
FIRST = {block: block * 7 % 10 // 5 for block in range(BLOCKS)}
SECOND = {block: 1 - place for block, place in FIRST.items()}


def series(label: str, factor: float = 1.0, blocks: int = BLOCKS, shift: int = 0) -> Series:
    values = {block: factor * NOISE[(3 * block + shift) % len(NOISE)] for block in range(blocks)}
    return Series(label=label, values=values, positions=SECOND if shift else FIRST)


def aa(low: float, high: float, blocks: int = 10) -> Effect:
    """A control whose blocks lie at `low` and `high` by turns."""
    values = {block: (low, high)[block % 2] for block in range(blocks)}
    return ratio(dict.fromkeys(values, 1.0), values)


def judge(factor: float, metric: Metric = SECONDS, **rest: Any) -> Comparison:
    return compare(metric, series("container"), series("vm", factor, shift=5), **rest)


def test_iterations_of_one_instance_are_one_value_a_block() -> None:
    assert per_block([(2, 5.0), (0, 1.0), (0, 9.0), (0, 2.0)]) == {0: 2.0, 2: 5.0}


def test_ratio_pairs_blocks_and_leaves_out_the_unpaired() -> None:
    effect = ratio({0: 1.0, 1: 2.0, 2: 4.0, 9: 5.0}, {0: 2.0, 1: 4.0, 2: 8.0, 7: 5.0})
    assert list(effect.logs) == [0, 1, 2]
    assert effect.estimate == pytest.approx(2)
    assert effect.interval is None


def test_ratio_cancels_what_a_block_does_to_both() -> None:
    host = {block: 10.0**block for block in range(8)}
    effect = ratio(host, {block: 3 * value for block, value in host.items()})
    assert effect.interval is not None
    assert [effect.interval.low, effect.interval.high] == pytest.approx([3, 3])


@given(some.lists(some.tuples(some.floats(0.01, 100), some.floats(0.01, 100)), min_size=6, max_size=30))
def test_swapping_the_sides_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    first = {block: pair[0] for block, pair in enumerate(pairs)}
    second = {block: pair[1] for block, pair in enumerate(pairs)}
    there, back = ratio(first, second).interval, ratio(second, first).interval
    assert there is not None
    assert back is not None
    assert there.estimate == pytest.approx(1 / back.estimate)
    assert there.low == pytest.approx(1 / back.high)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_ratio_refuses_what_has_no_logarithm(value: float) -> None:
    effect = ratio({0: 1.0, 1: 1.0}, {0: 1.0, 1: value})
    assert effect.refusal is Refusal.NO_DATA
    assert "contender" in effect.reason
    assert "block 1" in effect.reason


def test_ratio_without_a_shared_block_is_refused() -> None:
    assert ratio({0: 1.0}, {1: 1.0}).refusal is Refusal.NO_DATA


def test_ratio_beyond_thirty_blocks_is_bootstrapped() -> None:
    values = {block: NOISE[block % 10] for block in range(40)}
    effect = ratio(values, {block: 2 * NOISE[(7 * block + 1) % 10] for block in range(40)}, seed=5)
    assert effect.interval is not None
    assert effect.interval.confidence == 0.95
    assert effect.interval.low < 2 < effect.interval.high


def test_margin_is_three_percent_or_twice_the_half_width() -> None:
    assert equivalence_margin(None) == 0.03
    assert equivalence_margin(Interval(1, 0.99, 1.01, 0.95, 10)) == 0.03
    assert equivalence_margin(Interval(1, 1 / 1.1, 1.1, 0.95, 10)) == pytest.approx(0.21)


@given(some.lists(some.floats(-0.5, 0.5), min_size=6, max_size=30))
def test_a_lone_control_is_outside_exactly_when_it_excludes_one_and_passes_three_percent(logs: list[float]) -> None:
    effect = ratio(dict.fromkeys(range(len(logs)), 1.0), {block: math.exp(log) for block, log in enumerate(logs)})
    assert effect.interval is not None
    low, high = math.log(effect.interval.low), math.log(effect.interval.high)
    furthest = max(abs(low), abs(high))
    assume(min(abs(low), abs(high), abs(furthest - math.log(1.03))) > 1e-6)
    assert aa_outside(effect, 1) == ((low > 0 or high < 0) and furthest > math.log(1.03))


@pytest.mark.parametrize(
    ("low", "high", "outside"), [(0.8, 1.3, False), (1.01, 1.02, False), (1.01, 1.2, True), (0.9, 0.95, True)]
)
def test_aa_outside_by_hand(low: float, high: float, outside: bool) -> None:
    assert aa_outside(aa(low, high), 1) is outside


@pytest.mark.parametrize(
    ("blocks", "against", "controls", "outside"),
    [(10, 1, 1, True), (10, 1, 3, False), (10, 0, 25, True), (20, 3, 19, True), (20, 3, 25, False), (7, 0, 25, True)],
)
def test_one_control_of_many_must_differ_by_more_than_one_alone(
    blocks: int, against: int, controls: int, outside: bool
) -> None:
    values = {block: 0.98 if block < against else 1.05 + block / 1000 for block in range(blocks)}
    assert aa_outside(ratio(dict.fromkeys(values, 1.0), values), controls) is outside


@pytest.mark.parametrize(
    ("factor", "metric", "verdict"),
    [
        (2.0, SECONDS, Verdict.SLOWER),
        (0.5, SECONDS, Verdict.FASTER),
        (2.0, RATE, Verdict.FASTER),
        (0.5, RATE, Verdict.SLOWER),
        (1.0, SECONDS, Verdict.EQUIVALENT),
        (1.03, SECONDS, Verdict.INCONCLUSIVE),
        (1 / 1.03, SECONDS, Verdict.INCONCLUSIVE),
    ],
)
def test_verdicts(factor: float, metric: Metric, verdict: Verdict) -> None:
    comparison = judge(factor, metric, aa=aa(0.99, 1.01))
    assert (comparison.verdict, comparison.refusal) == (verdict, None)
    assert comparison.n == BLOCKS
    assert comparison.ratio == pytest.approx(factor, rel=0.02)
    assert comparison.p_value is not None


def test_a_noisy_control_widens_what_counts_as_equal() -> None:
    assert judge(1.06, aa=aa(0.99, 1.01)).verdict is Verdict.SLOWER
    assert judge(1.06, aa=aa(1 / 1.05, 1.05)).verdict is Verdict.EQUIVALENT


def test_a_very_noisy_control_calls_nothing_equal() -> None:
    comparison = judge(1.0, aa=aa(1 / 1.2, 1.2))
    assert comparison.verdict is Verdict.INCONCLUSIVE
    assert "noise floor" in comparison.reason


def _steal(share: float) -> Mapping[int, float]:
    return dict.fromkeys(range(BLOCKS), share)


REFUSED: dict[str, tuple[Refusal, Comparison]] = {
    "emulated": (Refusal.EMULATION, judge(2.0, emulated=True)),
    "parity": (Refusal.PARITY, judge(2.0, parity="2 vCPUs against 1")),
    "limit": (Refusal.LIMIT, judge(2.0, limit="cpus asked 0.5, read max")),
    "five blocks": (Refusal.FEW_BLOCKS, compare(SECONDS, series("a", blocks=5), series("b", 2.0, shift=5))),
    "confidence": (Refusal.FEW_BLOCKS, judge(2.0, confidence=0.9999)),
    "control short": (Refusal.FEW_BLOCKS, judge(2.0, aa=ratio({0: 1.0}, {0: 1.0}))),
    "control empty": (Refusal.FEW_BLOCKS, judge(2.0, aa=ratio({}, {}))),
    "control apart": (Refusal.AA_OUTSIDE, judge(2.0, aa=aa(1.05, 1.1))),
    "coarse clock": (Refusal.CLOCK, judge(2.0, resolution=0.011)),
    "steal": (
        Refusal.STEAL,
        compare(SECONDS, series("a"), replace(series("b", 2.0, shift=5), steal=_steal(0.02))),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_keep_the_figures_and_say_why(case: str) -> None:
    refusal, comparison = REFUSED[case]
    assert (comparison.verdict, comparison.refusal) == (Verdict.REFUSED, refusal)
    assert comparison.ratio == pytest.approx(2, rel=0.02)
    assert comparison.reason
    assert comparison.p_value is None


def test_nothing_refuses_just_inside_the_gates() -> None:
    quiet = replace(series("b", 2.0, shift=5), steal=_steal(0.009))
    assert compare(SECONDS, series("a"), quiet, resolution=0.009).refusal is None
    assert judge(2.0, RATE, emulated=True).refusal is None


def test_missing_data_is_refused_without_a_number() -> None:
    comparison = compare(SECONDS, series("a"), Series(label="b", values={}))
    assert comparison.refusal is Refusal.NO_DATA
    assert (comparison.ratio, comparison.ci_low, comparison.n) == (None, None, 0)


def test_emulation_is_named_before_missing_data_and_both_are_said() -> None:
    comparison = compare(SECONDS, series("a"), Series(label="b", values={0: 0.0, 1: 1.0}), emulated=True)
    assert comparison.refusal is Refusal.EMULATION
    assert "TCG" in comparison.reason
    assert "block 0" in comparison.reason


def test_drift_of_the_effect_is_refused() -> None:
    drifting = {block: 2 * 1.02**block for block in range(BLOCKS)}
    comparison = compare(SECONDS, series("a"), Series(label="b", values=drifting))
    assert comparison.refusal is Refusal.DRIFT
    assert "b ÷ a" in comparison.reason


def test_drift_of_the_host_is_refused_although_the_ratio_stands() -> None:
    host = {block: 1.02**block for block in range(BLOCKS)}
    both = {block: 2 * value for block, value in host.items()}
    comparison = compare(SECONDS, Series(label="a", values=host), Series(label="b", values=both))
    assert comparison.refusal is Refusal.DRIFT
    assert comparison.reason.startswith("a drifted by +19")


def test_drift_below_the_margin_is_let_pass() -> None:
    host = {block: 1.002**block for block in range(BLOCKS)}
    both = {block: 2 * value for block, value in host.items()}
    assert compare(SECONDS, Series(label="a", values=host), Series(label="b", values=both)).refusal is None


def test_order_effect_is_refused() -> None:
    late = {block: (2.0 if SECOND[block] else 2.2) * NOISE[block] for block in range(BLOCKS)}
    contender = Series(label="b", values=late, positions=SECOND)
    comparison = compare(SECONDS, series("a"), contender)
    assert comparison.refusal is Refusal.ORDER_EFFECT


def _warming(change: float, blocks: int = BLOCKS) -> dict[int, float]:
    return {block: math.log1p(change) + 0.001 * block for block in range(blocks)}


@pytest.mark.parametrize("change", [0.2, -0.2])
def test_iterations_that_have_not_come_to_rest_are_refused(change: float) -> None:
    warm = replace(series("b", 2.0, shift=5), warming=_warming(change))
    for baseline, contender in ((series("a"), warm), (warm, series("a"))):
        comparison = compare(SECONDS, baseline, contender)
        assert comparison.refusal is Refusal.UNSTEADY
        assert comparison.reason.startswith("b changes by ")


def test_a_change_within_the_margin_or_in_too_few_blocks_or_both_ways_is_steady() -> None:
    both_ways = {block: 0.2 * (-1) ** block for block in range(BLOCKS)}
    for changes in (_warming(0.01), _warming(0.2, blocks=5), both_ways, {}):
        warm = replace(series("b", 2.0, shift=5), warming=changes)
        assert compare(SECONDS, series("a"), warm).refusal is None


def test_warming_is_the_change_from_first_to_last() -> None:
    assert warming([1.0, 1.1, 1.21]) == pytest.approx(math.log(1.21))
    assert warming([2.0, 2.0, 9.0, 2.0, 2.0]) == 0
    assert warming([1.0, 2.0]) is None
    assert warming([1.0, 0.0, 1.0]) is None


def test_holm_demotes_what_does_not_survive_and_keeps_the_rest() -> None:
    clear, refused = judge(2.0), judge(2.0, parity="broken")
    six = compare(SECONDS, series("a", blocks=6), series("b", 2.0, blocks=6, shift=5))
    assert six.verdict is Verdict.SLOWER
    corrected = correct([clear, refused, six, judge(1.03)])
    assert [each.verdict for each in corrected] == [
        Verdict.SLOWER,
        Verdict.REFUSED,
        Verdict.INCONCLUSIVE,
        Verdict.INCONCLUSIVE,
    ]
    assert "among 3 claims" in corrected[2].reason
    assert corrected[1] == refused
    assert corrected[2].ratio == six.ratio


def test_holm_of_nothing() -> None:
    assert correct([]) == []


def test_stop_rule_looks_at_the_fewest_blocks_and_every_fifth_more() -> None:
    assert [blocks for blocks in range(25) if StopRule().looks(blocks)] == [6, 11, 16, 21]
    assert [blocks for blocks in range(25) if StopRule(min_blocks=10).looks(blocks)] == [10, 15, 20]


@pytest.mark.parametrize(
    ("widths", "stops"),
    [
        ([], False),
        ([math.inf], False),
        ([0.2], False),
        ([0.05], True),
        ([0.2, 0.19], False),
        ([0.2, 0.19, 0.18], False),
        ([0.2, 0.19, 0.195], True),
        ([0.3, 0.2, 0.21], False),
    ],
)
def test_stop_rule(widths: list[float], stops: bool) -> None:
    assert bool(StopRule().should_stop(widths)) is stops
