"""Two runs of one host and one profile against each other: ratio, interval and verdict per metric and driver.

Pure over what journals hold. The blocks of different runs are no pairs, so the interval is a rank one
(`harness.shift`); the margin is the wider of both runs' own A/A margins. Not the comparison within one run
(`harness.stats`), and not over many (`harness.history`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from harness.environment import STABLE
from harness.results import Outcome, Run, RunHeader
from harness.shift import beyond_p, shift_interval
from harness.stats import (
    ALPHA,
    MAX_MARGIN,
    MIN_BLOCKS,
    Effect,
    Refusal,
    Verdict,
    aa_outside,
    aa_p,
    equivalence_margin,
    holm,
    per_block,
    ratio,
)
from runtime.errors import UsageError
from workloads.metric import Better, Phase

_Place = tuple[str, str, str]  # metric, label, condition
# Labels that tell iterations apart or say what came about meanwhile: no conditions, which were chosen beforehand.
_REMARKS = (
    "iteration", "position", "settled_s", "others", "points", "granted", "limiter", "latency_rule", "outcome", "read",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric of one driver under one condition: a value a block, with what is needed to judge it.

    `margin` is δ of the run, from its A/A control. `setting` is what must be equal on both sides (the accelerator).
    """

    metric: str
    label: str
    condition: str
    unit: str
    better: Better
    values: tuple[float, ...]
    margin: float
    setting: str = ""

    @property
    def key(self) -> str:
        """`startup.ready[container]`, `leakage.leak[container] antagonist=cpu`."""
        return f"{self.metric}[{self.label}]" + (f" {self.condition}" if self.condition else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """`after` ÷ `before` of one series. `faster` is better, whichever way the metric runs; a refusal has no number."""

    key: str
    unit: str
    n_before: int
    n_after: int
    before: float | None
    after: float | None
    ratio: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    margin: float
    verdict: Verdict
    refusal: Refusal | None = None
    reason: str = ""
    p_value: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def demand_alike(before: RunHeader, after: RunHeader) -> None:
    """Raise UsageError naming what differs, where figures of the two runs must not be set against each other."""
    unlike = differences(before, after)
    if unlike:
        raise UsageError(
            "comparison", f"the runs differ in {'; '.join(unlike)}", "compare runs of one host and profile"
        )


def differences(before: RunHeader, after: RunHeader) -> list[str]:
    """What makes the runs incomparable, by name."""
    found = []
    if before.profile != after.profile:
        found.append(f"profile: {before.profile} and {after.profile}")
    elif before.settings != after.settings:
        found.append(f"settings of profile {before.profile}: {', '.join(_unlike(before.settings, after.settings))}")
    if before.fingerprint != after.fingerprint:
        found.append(f"host: {', '.join(host_differences(before.host, after.host)) or 'another fingerprint'}")
    return found


def host_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The facts of the fingerprint that differ: `kernel release 6.1 and 6.2`."""
    found = []
    for topic, names in STABLE.items():
        for name in names:
            one, other = before.get(topic, {}).get(name), after.get(topic, {}).get(name)
            if one != other:
                found.append(f"{topic} {name} {one} and {other}")
    return found


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def series(run: Run) -> dict[str, Series]:
    """Every series of the run by its key: measured samples of cells that ended well, a median a block."""
    drivers = {record.cell.label: record.cell.driver for record in run.records}
    blocks = _blocks(run)
    twins = _twins(blocks)
    found = {}
    for (name, label, condition), values in blocks.items():
        metric = run.header.metric(name)
        if metric is None or "~" in label:  # the twin is a control, not a subject
            continue
        one = Series(
            metric=name,
            label=label,
            condition=condition,
            unit=metric.unit,
            better=metric.better,
            values=tuple(values.values()),
            margin=_margin(twins, name, condition),
            setting=_accelerator(run, drivers[label]),
        )
        found[one.key] = one
    return found


def _blocks(run: Run) -> dict[_Place, dict[int, float]]:
    """By place: a value a block."""
    gathered: dict[_Place, list[tuple[int, float]]] = {}
    for record in run.records:
        for sample in record.samples if record.outcome is Outcome.OK else ():
            if sample.phase is Phase.MEASURE:
                labels = {name: value for name, value in sample.labels.items() if name not in _REMARKS}
                condition = " ".join(f"{name}={value}" for name, value in sorted(labels.items()))
                place = (sample.metric, record.cell.label, condition)
                gathered.setdefault(place, []).append((record.block, float(sample.value)))
    return {place: per_block(pairs) for place, pairs in gathered.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One metric's A/A control: twin ÷ itself, and whether it lies inside its own ±δ. `inside` is None for `reason`.

    `p_value` is that of no difference, corrected for all controls of the run.
    """

    key: str
    n: int
    ratio: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    margin: float | None = None
    p_value: float | None = None
    inside: bool | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def controls(run: Run) -> list[Control]:
    """The A/A control of everything that was measured on the twin too."""
    found = []
    twins = _twins(_blocks(run))
    judged = sum(effect.interval is not None for effect in twins.values())
    for (metric, label, condition), effect in twins.items():
        key = f"{metric}[{label}]" + (f" {condition}" if condition else "")
        interval = effect.interval
        if interval is None:
            reason = effect.reason or f"{len(effect.logs)} blocks, at least {MIN_BLOCKS} are needed"
            found.append(Control(key=key, n=len(effect.logs), ratio=effect.estimate, reason=reason))
            continue
        found.append(
            Control(
                key=key,
                n=len(effect.logs),
                ratio=effect.estimate,
                ci_low=interval.low,
                ci_high=interval.high,
                margin=equivalence_margin(interval),
                p_value=aa_p(effect, judged),
                inside=not aa_outside(effect, judged),
            )
        )
    return found


def control_table(found: Sequence[Control]) -> list[str]:
    """Lines for a terminal: every control that has an interval, then how many have none, by reason."""
    judged = [each for each in found if each.inside is not None]
    width = max((len(each.key) for each in judged), default=0)
    lines = [
        f"{each.key:{width}}  {each.ratio:8.4g}  [{each.ci_low:.4g}, {each.ci_high:.4g}]  ±{each.margin:.1%}  "
        f"n {each.n}  p {each.p_value:.2g}  {'inside' if each.inside else 'OUTSIDE'}"
        for each in judged
    ]
    refused = [each.reason for each in found if each.inside is None]
    return lines + [f"{refused.count(reason)} without an interval: {reason}" for reason in dict.fromkeys(refused)]


def _twins(blocks: Mapping[_Place, Mapping[int, float]]) -> dict[_Place, Effect]:
    """Of everything that was measured on a twin too, the twin ÷ itself, by the twin's place."""
    found = {}
    for (metric, label, condition), twin in blocks.items():
        own = blocks.get((metric, label.partition("~")[0], condition))
        if "~" in label and own is not None:
            found[metric, label, condition] = ratio(own, twin)
    return found


def _margin(twins: Mapping[_Place, Effect], metric: str, condition: str) -> float:
    """δ by the metric's twins; the least there is where it has none."""
    of_metric = (effect for (name, _, where), effect in twins.items() if (name, where) == (metric, condition))
    return equivalence_margin(next((effect.interval for effect in of_metric), None))


def _accelerator(run: Run, driver: str) -> str:
    entry = run.header.driver(driver)
    told = [facts.facts.get("accelerator", "") for facts in run.facts if facts.driver == driver]
    return next(filter(None, [*told, entry.facts.get("accelerator", "") if entry else ""]), "")


def changes(before: Mapping[str, Series], after: Mapping[str, Series]) -> list[Change]:
    """Every series that either side has, judged; Holm's correction keeps many metrics from false alarms."""
    return corrected([judge(before.get(key), after.get(key)) for key in dict.fromkeys([*before, *after])])


def judge(before: Series | None, after: Series | None, margin: float = 0.0) -> Change:
    """One series against itself on another day, with a margin of at least `margin`."""
    one = before or after
    assert one is not None
    early, late = before.values if before else (), after.values if after else ()
    margin = max(margin, *(each.margin for each in (before, after) if each is not None))
    change = Change(
        key=one.key,
        unit=one.unit,
        n_before=len(early),
        n_after=len(late),
        before=median(early) if early else None,
        after=median(late) if late else None,
        margin=margin,
        verdict=Verdict.REFUSED,
    )
    refusal = _refusal(before, after)
    if refusal is not None:
        return replace(change, refusal=refusal[0], reason=refusal[1])
    assert before is not None
    logs, later = [math.log(value) for value in early], [math.log(value) for value in late]
    interval = shift_interval(logs, later)
    assert interval is not None
    change = replace(
        change,
        ratio=math.exp(interval.estimate),
        ci_low=math.exp(interval.low),
        ci_high=math.exp(interval.high),
        p_value=beyond_p(logs, later, math.log1p(margin)),
    )
    verdict = _verdict(interval.low, interval.high, math.log1p(margin), before.better)
    if verdict is Verdict.EQUIVALENT and margin > MAX_MARGIN:
        reason = f"the noise floor (δ = {margin:.0%}) is too high to call anything equal"
        return replace(change, verdict=Verdict.INCONCLUSIVE, reason=reason)
    return replace(change, verdict=verdict)


def _refusal(before: Series | None, after: Series | None) -> tuple[Refusal, str] | None:
    if before is None or after is None:
        return Refusal.NO_DATA, f"only the {'earlier' if after is None else 'later'} run has it"
    if before.setting != after.setting:
        return Refusal.PARITY, f"accelerator {before.setting or 'unknown'}, then {after.setting or 'unknown'}"
    fewest = min(len(before.values), len(after.values))
    if fewest < MIN_BLOCKS:
        return Refusal.FEW_BLOCKS, f"{fewest} blocks, at least {MIN_BLOCKS} are needed"
    if not all(value > 0 and math.isfinite(value) for value in (*before.values, *after.values)):
        return Refusal.NO_DATA, "a ratio needs positive figures"
    return None


def _verdict(low: float, high: float, edge: float, better: Better) -> Verdict:
    if low > edge or high < -edge:
        return Verdict.FASTER if (low > edge) == (better is Better.HIGHER) else Verdict.SLOWER
    return Verdict.EQUIVALENT if -edge < low and high < edge else Verdict.INCONCLUSIVE


def corrected(found: Sequence[Change]) -> list[Change]:
    """Holm's correction: a change that does not survive it becomes inconclusive and says so."""
    moved = (Verdict.FASTER, Verdict.SLOWER)
    tested = [each for each in found if each.p_value is not None]
    adjusted = dict(zip(map(id, tested), holm([each.p_value or 0.0 for each in tested]), strict=True))
    result = []
    for each in found:
        p_value = adjusted.get(id(each))
        if p_value is not None and each.verdict in moved and p_value > ALPHA:
            why = f"{each.verdict} alone, but not among {len(tested)} (Holm: p = {p_value:.2g})"
            result.append(replace(each, verdict=Verdict.INCONCLUSIVE, reason=why, p_value=p_value))
        else:
            result.append(replace(each, p_value=p_value))
    return result


def regressions(found: Iterable[Change]) -> list[Change]:
    """Those that are surely worse, by more than the margin."""
    return [each for each in found if each.verdict is Verdict.SLOWER]


def table(found: Sequence[Change]) -> list[str]:
    """Lines for a terminal: what could be judged, then how much could not, by reason."""
    judged = [each for each in found if each.ratio is not None]
    width = max((len(each.key) for each in judged), default=0)
    lines = [
        f"{each.key:{width}}  {each.ratio:8.4g}  [{each.ci_low:.4g}, {each.ci_high:.4g}]  ±{each.margin:.1%}  "
        f"n {each.n_before}, {each.n_after}  {each.verdict}" + (f": {each.reason}" if each.reason else "")
        for each in judged
    ]
    refused = [each.reason for each in found if each.ratio is None]
    lines += [f"{refused.count(reason)} not compared: {reason}" for reason in dict.fromkeys(refused)]
    return lines or ["nothing to compare"]
