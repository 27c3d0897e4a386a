"""How sure: effects over blocks, the equivalence margin, verdicts, refusals, and when to stop measuring.

Pure functions of numbers; no files, no host, no pandas. The rules and their sources stand in docs/method.md.
This is the one module of the harness's judgement that reports import.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import fmean, median

from harness.intervals import (
    Interval,
    Outlier,
    Tail,
    bootstrap_interval,
    median_interval,
    quantile,
    quantile_interval,
    relative_half_width,
    tail,
    theil_sen,
    tukey_classes,
)
from harness.significance import association_p, blocks_needed, holm, sign_test_p
from workloads.metric import Better, Metric

__all__ = [
    "Comparison", "Effect", "Interval", "Outlier", "Refusal", "Series", "StopRule", "Tail", "Verdict",
    "aa_outside", "aa_p", "blocks_needed", "compare", "correct", "equivalence_margin", "holm", "median_interval",
    "per_block", "quantile", "quantile_interval", "ratio", "relative_half_width", "sign_test_p", "tail", "theil_sen",
    "tukey_classes", "warming",
]  # fmt: skip

MIN_BLOCKS = 6
MIN_ITERATIONS = 3  # fewer show no trend
MIN_MARGIN = 0.03
ALPHA = 0.05
MAX_MARGIN = 0.25  # a noise floor beyond this calls nothing equal
BOOTSTRAP_BEYOND = 30
GATE_P = 0.01
MAX_STEAL = 0.01
MAX_RESOLUTION = 0.01


class Verdict(StrEnum):
    """What a comparison says of the contender against the baseline."""

    FASTER = "faster"
    SLOWER = "slower"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    REFUSED = "refused"


class Refusal(StrEnum):
    """Why a comparison must not be drawn. The value is the code shown in the cell."""

    FEW_BLOCKS = "few-blocks"
    AA_OUTSIDE = "aa-outside"
    ORDER_EFFECT = "order-effect"
    DRIFT = "drift"
    UNSTEADY = "unsteady"
    STEAL = "steal"
    CLOCK = "clock"
    PARITY = "parity"
    LIMIT = "limit-not-biting"
    EMULATION = "software-emulation"
    NO_DATA = "no-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`contender` ÷ `baseline` for one metric over paired blocks. Derived, never stored.

    `ratio` is exp(median over blocks of log(contender/baseline)); [ci_low, ci_high] its interval at
    `confidence`. None where there is no number. `margin` is δ, the relative equivalence margin.
    `verdict` speaks of better and worse (`faster` = better whichever way the metric runs). A refused
    comparison keeps its figures. `p_value` is two-sided, and Holm-adjusted after `correct`; None where
    nothing was tested.
    """

    metric: str
    baseline: str
    contender: str
    n: int
    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    confidence: float
    margin: float | None
    verdict: Verdict
    refusal: Refusal | None = None
    reason: str = ""
    p_value: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One cell's figures for one metric, by block.

    `values` holds one number a block (see `per_block`), in the metric's unit; `positions` the cell's
    place in each block's order; `steal` the share (0–1) of CPU time that a hypervisor took during it; `warming`
    the relative change over the block's own iterations, where it had several (see `warming`). Blocks where the
    cell failed are absent.
    """

    label: str
    values: Mapping[int, float]
    positions: Mapping[int, int] = field(default_factory=dict)
    steal: Mapping[int, float] = field(default_factory=dict)
    warming: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Contender ÷ baseline over the blocks that hold both.

    `logs` maps block → log ratio, in block order. `interval` is of the ratio, None below 6 blocks.
    With `refusal` set, `reason` says why there is no number at all.
    """

    logs: Mapping[int, float]
    estimate: float | None = None
    interval: Interval | None = None
    refusal: Refusal | None = None
    reason: str = ""


def per_block(samples: Iterable[tuple[int, float]]) -> dict[int, float]:
    """One number a block from (block, value) pairs: the median, for iterations in one instance are no replicates."""
    gathered: dict[int, list[float]] = {}
    for block, value in samples:
        gathered.setdefault(block, []).append(value)
    return {block: median(values) for block, values in sorted(gathered.items())}


def warming(values: Sequence[float]) -> float | None:
    """The log change from the first to the last of a block's iterations, by Theil and Sen; None for fewer than 3.

    None also where a value is not positive and finite.
    """
    if len(values) < MIN_ITERATIONS or not all(value > 0 and math.isfinite(value) for value in values):
        return None
    logs = [math.log(value) for value in values]
    slopes = [(logs[j] - logs[i]) / (j - i) for j in range(len(logs)) for i in range(j)]
    return median(slopes) * (len(logs) - 1)


def ratio(
    baseline: Mapping[int, float], contender: Mapping[int, float], *, confidence: float = 0.95, seed: int = 0
) -> Effect:
    """The effect over paired blocks; an order-statistic interval up to 30 blocks, a seeded bootstrap of blocks beyond.

    A value that is zero, negative or not finite has no ratio: the effect is refused, nothing raises.
    """
    shared = sorted(baseline.keys() & contender.keys())
    if not shared:
        return Effect(logs={}, refusal=Refusal.NO_DATA, reason="no block holds both sides")
    for block in shared:
        for side, value in (("baseline", baseline[block]), ("contender", contender[block])):
            if not (value > 0 and math.isfinite(value)):
                why = f"the {side} is {value:g} in block {block}, and a ratio needs positive figures"
                return Effect(logs={}, refusal=Refusal.NO_DATA, reason=why)
    logs = {block: math.log(contender[block] / baseline[block]) for block in shared}
    values = list(logs.values())
    if len(values) > BOOTSTRAP_BEYOND:
        interval: Interval | None = bootstrap_interval(values, confidence, seed=seed)
    else:
        interval = median_interval(values, confidence)
    if interval is not None:
        interval = replace(
            interval,
            estimate=math.exp(interval.estimate),
            low=math.exp(interval.low),
            high=math.exp(interval.high),
        )
    return Effect(logs=logs, estimate=math.exp(median(values)), interval=interval)


def equivalence_margin(aa: Interval | None) -> float:
    """δ as a proportion: twice the A/A control's half width (on the log scale), at least 3 %; without a control 3 %."""
    return MIN_MARGIN if aa is None else max(MIN_MARGIN, (1 + relative_half_width(aa)) ** 2 - 1)


def aa_p(aa: Effect, controls: int) -> float:
    """How surprising the A/A effect is for a ratio of 1, as one of `controls` in a run (sign test, Bonferroni)."""
    return min(1.0, controls * sign_test_p(list(aa.logs.values()), 0.0))


def aa_outside(aa: Effect, controls: int) -> bool:
    """Whether the A/A interval is not wholly inside ±δ of 1, by more than chance among the `controls` of a run.

    As δ is never below twice its own half width, an interval reaches beyond exactly when two runs of the same thing
    differ significantly (it excludes 1) and by what may be more than 3 %: one in twenty does so by chance. That is
    told apart by `aa_p`; where fewer than `blocks_needed` keep it from being small, all of them must say the same.
    """
    if aa.interval is None:
        return False
    edge = (1 + equivalence_margin(aa.interval)) * (1 + 1e-9)
    if 1 / edge <= aa.interval.low <= aa.interval.high <= edge:
        return False
    signs = {math.copysign(1, log) for log in aa.logs.values()}
    return aa_p(aa, controls) <= ALPHA or len(signs) == 1


def compare(
    metric: Metric,
    baseline: Series,
    contender: Series,
    *,
    aa: Effect | None = None,
    controls: int = 1,
    emulated: bool = False,
    parity: str = "",
    limit: str = "",
    resolution: float = 0.0,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Judge `contender` against `baseline`, or refuse to, with the figures in either case.

    `aa` is the effect of the A/A twins for this metric, one of `controls` in the run, or None if it has none.
    `emulated`: one side is a VM under software emulation. `parity` and `limit` say in words what is broken, or are
    empty. `resolution` is the clock's, in the metric's unit, 0 where nothing is timed.
    """
    effect = ratio(baseline.values, contender.values, confidence=confidence, seed=seed)
    logs = list(effect.logs.values())
    margin = equivalence_margin(aa.interval if aa else None)
    judged = Comparison(
        metric=metric.name,
        baseline=baseline.label,
        contender=contender.label,
        n=len(logs),
        ratio=effect.estimate,
        ci_low=effect.interval.low if effect.interval else None,
        ci_high=effect.interval.high if effect.interval else None,
        confidence=effect.interval.confidence if effect.interval else confidence,
        margin=margin,
        verdict=Verdict.REFUSED,
    )
    reasons: list[tuple[Refusal, str]] = []
    if emulated and metric.hardware:
        reasons.append((Refusal.EMULATION, "the virtual machine ran under software emulation (TCG)"))
    if effect.refusal is not None:
        reasons.append((effect.refusal, effect.reason))
    reasons += [(code, why) for code, why in ((Refusal.PARITY, parity), (Refusal.LIMIT, limit)) if why]
    if effect.refusal is None:
        reasons += _precision_gates(baseline, contender, effect, aa, controls, resolution)
        reasons += _host_gates(baseline, contender, effect, margin, seed)
    if reasons or effect.interval is None:
        return replace(judged, refusal=reasons[0][0], reason="; ".join(why for _, why in reasons))
    verdict, reason = _verdict(effect.interval, margin, metric.better)
    return replace(judged, verdict=verdict, reason=reason, p_value=sign_test_p(logs, margin))


def _precision_gates(
    baseline: Series, contender: Series, effect: Effect, aa: Effect | None, controls: int, resolution: float
) -> Iterator[tuple[Refusal, str]]:
    blocks = len(effect.logs)
    if blocks < MIN_BLOCKS or effect.interval is None:
        yield Refusal.FEW_BLOCKS, f"{blocks} {_noun(blocks)}, too few for an interval: at least {MIN_BLOCKS} are needed"
    elif aa is not None and aa.interval is None:
        blocks = len(aa.logs)
        yield Refusal.FEW_BLOCKS, aa.reason or f"the A/A control has {blocks} {_noun(blocks)}, not {MIN_BLOCKS}"
    if aa is not None and aa.interval is not None and aa_outside(aa, controls):
        yield Refusal.AA_OUTSIDE, f"two runs of the same thing differ by {aa.interval.estimate - 1:+.1%}"
    smallest = min(median(series.values[block] for block in effect.logs) for series in (baseline, contender))
    if resolution > MAX_RESOLUTION * smallest:
        yield Refusal.CLOCK, f"the clock's step is {resolution / smallest:.1%} of the sample"


def _host_gates(
    baseline: Series, contender: Series, effect: Effect, margin: float, seed: int
) -> Iterator[tuple[Refusal, str]]:
    for series in (baseline, contender):
        shares = [series.steal[block] for block in effect.logs if block in series.steal]
        if shares and fmean(shares) > MAX_STEAL:
            yield Refusal.STEAL, f"{fmean(shares):.1%} of CPU time was stolen during {series.label}"
    own = {block: math.log(baseline.values[block]) for block in effect.logs}
    for what, trace in ((f"{contender.label} ÷ {baseline.label}", effect.logs), (baseline.label, own)):
        change = _drift(trace, seed)
        if abs(change) > math.log1p(margin):
            yield Refusal.DRIFT, f"{what} drifted by {math.expm1(change):+.1%} over the run"
    for series in (baseline, contender):
        steady = median_interval([series.warming[block] for block in effect.logs if block in series.warming])
        if steady is not None and (steady.low > math.log1p(margin) or steady.high < -math.log1p(margin)):
            change = math.expm1(steady.estimate)
            yield Refusal.UNSTEADY, f"{series.label} changes by {change:+.1%} from its first to its last iteration"
    placed = [block for block in effect.logs if block in baseline.positions and block in contender.positions]
    lead = [contender.positions[block] - baseline.positions[block] for block in placed]
    if association_p(lead, [effect.logs[block] for block in placed], seed=seed) < GATE_P:
        yield Refusal.ORDER_EFFECT, "the ratio depends on which of the two ran first"


def _noun(blocks: int) -> str:
    return "block" if blocks == 1 else "blocks"


def _drift(trace: Mapping[int, float], seed: int) -> float:
    # The change of a log quantity over the run where it trends significantly, else 0.
    blocks, values = list(trace), list(trace.values())
    if association_p(blocks, values, seed=seed) >= GATE_P:
        return 0.0
    slope = theil_sen(blocks, values)
    return 0.0 if slope is None else slope.estimate * (blocks[-1] - blocks[0])


def _verdict(interval: Interval, margin: float, better: Better) -> tuple[Verdict, str]:
    edge = 1 + margin
    if interval.low > edge or interval.high < 1 / edge:
        larger = interval.low > edge
        return (Verdict.FASTER if larger == (better is Better.HIGHER) else Verdict.SLOWER), ""
    if 1 / edge < interval.low and interval.high < edge:
        if margin > MAX_MARGIN:
            return Verdict.INCONCLUSIVE, f"the noise floor (δ = {margin:.0%}) is too high to call anything equal"
        return Verdict.EQUIVALENT, ""
    return Verdict.INCONCLUSIVE, f"the interval reaches across ±{margin:.1%}"


def correct(comparisons: Sequence[Comparison], alpha: float = ALPHA) -> list[Comparison]:
    """Holm's correction across a report's claims: the same comparisons, in order, with adjusted p-values.

    Every comparison that was tested counts; a verdict that does not survive becomes inconclusive and
    says how many blocks could have carried it. Refused ones pass through untouched.
    """
    tested = [place for place, each in enumerate(comparisons) if each.p_value is not None]
    adjusted = holm([comparisons[place].p_value or 0.0 for place in tested])
    result = list(comparisons)
    for place, p_value in zip(tested, adjusted, strict=True):
        each = replace(result[place], p_value=p_value)
        if each.verdict is not Verdict.INCONCLUSIVE and p_value > alpha:
            why = (
                f"{each.verdict} alone, but not among {len(tested)} claims (Holm: p = {p_value:.2g}); "
                f"{blocks_needed(len(tested), alpha)} unanimous blocks would be needed"
            )
            each = replace(each, verdict=Verdict.INCONCLUSIVE, reason=why)
        result[place] = each
    return result


@dataclass(frozen=True, slots=True)
class StopRule:
    """When more blocks are no longer worth their time: on precision, never on significance."""

    min_blocks: int = MIN_BLOCKS
    target: float = 0.05
    look_every: int = 5
    shrink: float = 0.95

    def looks(self, blocks: int) -> bool:
        """Whether to look after `blocks` blocks: at the fewest allowed, and at every fifth more."""
        return blocks >= self.min_blocks and (blocks - self.min_blocks) % self.look_every == 0

    def should_stop(self, widths: Sequence[float]) -> str:
        """Why to stop, or an empty string to go on.

        `widths` holds, for each look so far, the widest relative half width among the comparisons that
        matter. A look that is not narrower than 95 % of the one before the last counts as no progress.
        """
        if widths and widths[-1] <= self.target:
            return f"half width {widths[-1]:.1%}, wanted {self.target:.0%}"
        if len(widths) >= 3 and widths[-1] >= self.shrink * widths[-3]:
            return f"half width {widths[-1]:.1%} no longer shrinks"
        return ""
