"""How a ruling follows from the evidence: one function a rule, named by the claims file.

A claim of the seed speaks of two things at once, containers and virtual machines. Each half holds,
fails or stays open; together they make the ruling (`combine`). Thresholds come from the claims file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness import stats
from harness.stats import Comparison, Interval, Refusal, Verdict
from reports.claims import CONTAINER, NATIVE, VM, Claim, Contrast, Estimate, Evidence, Row, Rule, Ruling
from reports.frame import Message
from workloads.metric import Better

RULES: dict[str, Rule] = {}
# What ends a ramp without showing a limit of the thing that was ramped.
OPEN_ENDS = frozenset({"cap", "time", "deadline", "profile", "host", "budget"})


def rule(function: Rule) -> Rule:
    """Register `function` under its own name."""
    RULES[function.__name__] = function
    return function


@dataclass(frozen=True, slots=True)
class Half:
    """One side of a claim: it holds, fails, or is open (None) for `why`."""

    holds: bool | None
    why: Message


def combine(container: Half, vm: Half) -> tuple[Ruling, Message]:
    """The ruling on a claim from its halves: one that holds beside one that does not makes it qualified."""
    match container.holds, vm.holds:
        case True, True:
            return Ruling.CONFIRMED, Message("reason.both")
        case False, False:
            return Ruling.REFUTED, Message("reason.neither")
        case True, False:
            return Ruling.QUALIFIED, Message("reason.container_only", {"why": vm.why})
        case False, True:
            return Ruling.QUALIFIED, Message("reason.vm_only", {"why": container.why})
        case True, None:
            return Ruling.QUALIFIED, Message("reason.container_open", {"why": vm.why})
        case None, True:
            return Ruling.QUALIFIED, Message("reason.vm_open", {"why": container.why})
        case None, _:
            return Ruling.UNMEASURABLE, container.why
        case _:
            return Ruling.UNMEASURABLE, vm.why


def settle(
    evidence: Evidence, claim: Claim, container: Sequence[Estimate], vm: Sequence[Estimate],
    ruled: tuple[Ruling, Message], contrast: Contrast, deciding: Sequence[Estimate] = (),
) -> Row:  # fmt: skip
    """The row of a claim, after the refusals that stand above any rule: no figures, smoke, emulation, few blocks.

    `deciding` are the estimates without which nothing is ruled; by default the first of either side.
    """
    ruling, reason = ruled
    deciding = deciding or (container[0], vm[0])
    needed = int(claim.limits.get("blocks", stats.MIN_BLOCKS))
    n = min(estimate.n for estimate in deciding)
    if all(estimate.why is not None and estimate.why.key == "absent.no_workload" for estimate in deciding):
        ruling, reason = Ruling.UNMEASURED, Message("reason.not_in_run")
    elif evidence.claims_nothing:
        ruling, reason = Ruling.UNMEASURABLE, Message("reason.smoke")
    elif missing := next((estimate for estimate in deciding if estimate.value is None), None):
        ruling = Ruling.UNMEASURABLE
        reason = Message("reason.missing", {"label": missing.label, "why": missing.why or Message("absent.no_sample")})
    elif claim.hardware and vm[0].emulated:
        ruling, reason = (
            Ruling.UNMEASURABLE,
            Message("reason.emulation" if vm[0].mark == "TCG" else "reason.unknown_accelerator"),
        )
    elif n < needed:
        ruling, reason = Ruling.UNMEASURABLE, Message("reason.few_blocks", {"n": n, "needed": needed})
    return Row(
        claim=claim, ruling=ruling, reason=reason, container=tuple(container), vm=tuple(vm), contrast=contrast, n=n
    )


def _side(evidence: Evidence, claim: Claim, metric: str) -> tuple[list[Estimate], list[Estimate]]:
    containers, vms = evidence.sides(claim)
    return [evidence.estimate(metric, label) for label in containers], [
        evidence.estimate(metric, label) for label in vms
    ]


def against(estimate: Estimate, limit: float, *, below: bool, key: str) -> Half:
    """Whether the estimate's whole interval lies on the claimed side of `limit`; open where it reaches across."""
    interval = estimate.interval
    if interval is None:
        return Half(None, Message("reason.no_interval", {"label": estimate.label}))
    if interval.high < limit:
        return Half(below, Message(f"{key}.below"))
    if interval.low >= limit:
        return Half(not below, Message(f"{key}.above"))
    return Half(None, Message("reason.across", {"label": estimate.label}))


@rule
def startup(evidence: Evidence, claim: Claim) -> Row:
    """A container is ready in less than a minute, a VM in no less."""
    metric, limit = claim.metrics[0], claim.limits["minute_s"]
    container, vm = _side(evidence, claim, metric)
    halves = (
        against(container[0], limit, below=True, key="half.startup"),
        against(vm[0], limit, below=False, key="half.startup"),
    )
    return settle(evidence, claim, container, vm, combine(*halves), evidence.contrast(metric))


def first_instance(evidence: Evidence, claim: Claim, label: str) -> dict[int, float]:
    """Block → bytes that a first instance takes: its image and what it adds. One of the two alone is no sum."""
    image, added = (evidence.frame.blocks(metric, label) for metric in claim.metrics[:2])
    return {block: image[block] + added[block] for block in sorted(image.keys() & added.keys())}


@rule
def disk(evidence: Evidence, claim: Claim) -> Row:
    """A container with its image takes less than a gigabyte, a VM no less."""
    metric, limit = claim.metrics[0], claim.limits["gigabyte_bytes"]
    sums = {label: first_instance(evidence, claim, label) for side in evidence.sides(claim) for label in side}
    container, vm = (
        [evidence.summary(metric, label, sums[label], "B") for label in side] for side in evidence.sides(claim)
    )
    halves = (
        against(container[0], limit, below=True, key="half.disk"),
        against(vm[0], limit, below=False, key="half.disk"),
    )
    return settle(
        evidence, claim, container, vm, combine(*halves), _ratio(sums[CONTAINER], sums[vm[0].label], emulated=False)
    )


def relative(evidence: Evidence, metric: str, label: str) -> dict[int, float]:
    """Block → performance of `label` relative to native: below 1 is worse, whichever way the metric runs."""
    known = evidence.frame.metric(metric)
    effect = stats.ratio(evidence.frame.blocks(metric, NATIVE), evidence.frame.blocks(metric, label))
    sign = -1 if known is not None and known.better is Better.LOWER else 1
    return {block: math.exp(sign * log) for block, log in effect.logs.items()}


def meaningful(parts: Iterable[dict[int, float]]) -> list[dict[int, float]]:
    """The parts that were measured; less those in too few blocks, where any were in enough.

    A part that was looked at once would leave a mean over all of them with one block.
    """
    tables = [part for part in parts if part]
    return [part for part in tables if len(part) >= stats.MIN_BLOCKS] or tables


def geometric_mean(parts: Iterable[dict[int, float]]) -> dict[int, float]:
    """Block → geometric mean over the meaningful parts, for the blocks that hold every one of them."""
    tables = meaningful(parts)
    shared = set.intersection(*(set(table) for table in tables)) if tables else set()
    return {block: math.exp(sum(math.log(t[block]) for t in tables) / len(tables)) for block in sorted(shared)}


@rule
def performance(evidence: Evidence, claim: Claim) -> Row:
    """A container's overhead set stays near native in the mean and in every part; a VM's does not in the mean.

    A part whose comparison of container with native is refused is in no mean; with too many refused, nothing is ruled.
    """
    containers, vms = evidence.sides(claim)
    gates = {metric: evidence.compare(metric, NATIVE, CONTAINER) for metric in claim.metrics}
    refused = {metric: gate for metric, gate in gates.items() if gate is not None and gate.refusal in _GATES}
    void = len(refused) > claim.limits["refused"] * sum(gate is not None for gate in gates.values())
    kept = tuple(metric for metric in claim.metrics if void or metric not in refused)
    parts = {label: {m: relative(evidence, m, label) for m in kept} for label in (*containers, *vms)}
    means = {label: geometric_mean(table.values()) for label, table in parts.items()}

    def estimates(labels: tuple[str, ...]) -> list[Estimate]:
        found = []
        for label in labels:
            estimate = evidence.summary(claim.metrics[0], label, means[label], "1")
            if estimate.value is None and estimate.why is not None and evidence.frame.blocks(claim.metrics[0], label):
                estimate = replace(estimate, why=evidence.frame.why_absent(claim.metrics[0], NATIVE))
            count = len(meaningful(parts[label].values()))
            short = Message("note.parts", {"count": count, "of": len(claim.metrics)})
            found.append(replace(estimate, note=Message("note.native") if count == len(claim.metrics) else short))
        return found

    container, vm = estimates(containers), estimates(vms)
    near = claim.limits["near"]
    halves = (
        against(container[0], near, below=False, key="half.performance"),
        against(vm[0], near, below=True, key="half.performance"),
    )
    ruled = combine(*halves)
    weak = [m for m, table in parts[CONTAINER].items() if _below(list(table.values()), claim.limits["part"])]
    if ruled[0] is Ruling.CONFIRMED and weak:
        ruled = Ruling.QUALIFIED, Message("reason.except_parts", {"parts": short_names(weak)})
    if void:
        first = next(iter(refused.values()))
        ruled = Ruling.UNMEASURABLE, Message("reason.gate", {"code": first.refusal, "why": first.reason})
    return settle(
        evidence, claim, container, vm, ruled, _ratio(means[CONTAINER], means[vm[0].label], emulated=vm[0].emulated)
    )


_GATES = frozenset(
    {Refusal.AA_OUTSIDE, Refusal.ORDER_EFFECT, Refusal.DRIFT, Refusal.STEAL, Refusal.PARITY, Refusal.LIMIT}
)


def _below(values: Sequence[float], limit: float) -> bool:
    interval = stats.median_interval(values) if values else None
    return interval is not None and interval.high < limit


def _short(metric: str) -> str:
    return metric.partition(".")[2].replace("_", " ")


def _ratio(baseline: dict[int, float], contender: dict[int, float], *, emulated: bool) -> Contrast:
    effect = stats.ratio(baseline, contender)
    code = str(Refusal.EMULATION) if emulated else str(effect.refusal or "")
    interval = effect.interval
    low, high = (interval.low, interval.high) if interval else (None, None)
    if not code and interval is None:
        code = str(Refusal.FEW_BLOCKS)
    why = Message("plain", {"text": effect.reason}) if effect.reason else None
    return Contrast(unit="×", value=effect.estimate, low=low, high=high, n=len(effect.logs), code=code, why=why)


@rule
def density(evidence: Evidence, claim: Claim) -> Row:
    """A thousand containers ran; virtual machines stopped, for a reason of their own, at a few dozen."""
    metric = claim.metrics[0]
    container, vm = ([_reached(evidence, metric, label) for label in side] for side in evidence.sides(claim))
    low, high = claim.limits["dozens_low"], claim.limits["dozens_high"]
    halves = (_thousands(container[0], claim.limits["thousands"]), _dozens(vm[0], low, high))
    if container[0].at_least or vm[0].at_least:
        contrast = Contrast(unit="×", why=Message("note.bounds"))
    else:
        contrast = _ratio(*(evidence.frame.blocks(metric, side[0].label) for side in (container, vm)), emulated=False)
    return settle(evidence, claim, container, vm, combine(*halves), contrast)


def limiters(evidence: Evidence, metric: str, label: str) -> tuple[str, ...]:
    """What ended the ramps of `label`, in the order seen."""
    return tuple(dict.fromkeys(where.get("limiter", "") for _, _, where in evidence.frame.values(metric, label)))


def _reached(evidence: Evidence, metric: str, label: str) -> Estimate:
    # The largest ramp: that it ran once is proof that it can run.
    estimate = evidence.estimate(metric, label)
    if estimate.value is None:
        return estimate
    names = limiters(evidence, metric, label)
    largest = max(evidence.frame.blocks(metric, label).values())
    note = Message("note.limiter", {"limiter": ", ".join(filter(None, names)) or "?"})
    return replace(estimate, value=largest, at_least=not names or any(name in OPEN_ENDS for name in names), note=note)


def _thousands(estimate: Estimate, thousands: float) -> Half:
    if estimate.value is None:
        return Half(None, Message("reason.no_interval", {"label": estimate.label}))
    if estimate.value >= thousands:
        return Half(True, Message("half.density.thousands"))
    if estimate.at_least:
        return Half(
            None, Message("half.density.cap", {"label": estimate.label, "note": estimate.note or Message("empty")})
        )
    return Half(False, Message("half.density.fewer", {"label": estimate.label}))


def _dozens(estimate: Estimate, low: float, high: float) -> Half:
    if estimate.value is None:
        return Half(None, Message("reason.no_interval", {"label": estimate.label}))
    if estimate.value >= high:
        return Half(False, Message("half.density.more"))
    if estimate.at_least:
        return Half(
            None, Message("half.density.cap", {"label": estimate.label, "note": estimate.note or Message("empty")})
        )
    if estimate.value < low:
        return Half(False, Message("half.density.fewer", {"label": estimate.label}))
    return Half(True, Message("half.density.dozens"))


def antagonists(evidence: Evidence, metric: str) -> tuple[str, ...]:
    """The antagonists of the run, without the placebo."""
    return tuple(name for name in evidence.frame.conditions(metric, "antagonist") if name != "placebo")


def placebo_noise(evidence: Evidence, metric: str, labels: Iterable[str], least: float) -> float:
    """How far a leak may be from zero without an antagonist: `least`, or as far as any placebo interval reaches."""
    reach = [least]
    for label in labels:
        values = list(evidence.frame.blocks(metric, label, antagonist="placebo").values())
        interval = stats.median_interval(values) if values else None
        if interval is not None:
            reach.append(max(abs(interval.low), abs(interval.high)))
    return max(reach)


def difference(evidence: Evidence, metric: str, vm: str, antagonist: str) -> Interval | None:
    """Container's leak minus that of `vm` beside `antagonist`, paired by block; None below six blocks."""
    first, second = (evidence.frame.blocks(metric, label, antagonist=antagonist) for label in (CONTAINER, vm))
    shared = sorted(first.keys() & second.keys())
    return stats.median_interval([first[block] - second[block] for block in shared]) if shared else None


@rule
def isolation(evidence: Evidence, claim: Claim) -> Row:
    """Beside the same antagonist a container loses more of what it is entitled to than a VM does."""
    metric = claim.metrics[0]
    names = antagonists(evidence, metric)
    deciding = evidence.sides(claim)[1][0]
    noise = placebo_noise(evidence, metric, (CONTAINER, deciding), claim.limits["points"])
    gaps = {name: difference(evidence, metric, deciding, name) for name in names}
    worse = [name for name, gap in gaps.items() if gap is not None and gap.low > noise]
    alike = [name for name, gap in gaps.items() if gap is not None and gap.high < noise]
    if names and len(worse) == len(names):
        ruled = Ruling.CONFIRMED, Message("half.isolation.all")
    elif worse:
        ruled = Ruling.QUALIFIED, Message("half.isolation.some", {"names": ", ".join(worse)})
    elif names and len(alike) == len(names):
        ruled = Ruling.REFUTED, Message("half.isolation.none")
    else:
        ruled = Ruling.UNMEASURABLE, Message("half.isolation.open")
    if broken := evidence.broken_limits(CONTAINER, deciding):
        ruled = Ruling.UNMEASURABLE, Message("reason.gate", {"code": Refusal.LIMIT, "why": broken})
    container, vm = ([_worst(evidence, metric, label, names) for label in side] for side in evidence.sides(claim))
    chosen = max(gaps, key=lambda name: gaps[name].estimate if gaps[name] else -math.inf, default="")  # type: ignore[union-attr]
    return settle(evidence, claim, container, vm, ruled, _points(gaps.get(chosen), chosen, vm[0].emulated))


def _worst(evidence: Evidence, metric: str, label: str, names: Sequence[str]) -> Estimate:
    estimates = [(name, evidence.estimate(metric, label, antagonist=name)) for name in names]
    found = [(name, estimate) for name, estimate in estimates if estimate.value is not None]
    if not found:
        return evidence.estimate(metric, label, antagonist="?")
    name, estimate = max(found, key=lambda item: item[1].value or 0.0)
    return replace(estimate, note=Message("note.antagonist", {"name": name}))


def _points(gap: Interval | None, name: str, emulated: bool) -> Contrast:
    code = str(Refusal.EMULATION) if emulated else ""
    if gap is None:
        return Contrast(unit="pp", code=code or str(Refusal.FEW_BLOCKS), why=Message("reason.no_pairs"))
    why = Message("note.antagonist", {"name": name})
    return Contrast(
        unit="pp", value=-gap.estimate * 100, low=-gap.high * 100, high=-gap.low * 100, n=gap.n, code=code, why=why
    )


@rule
def overhead_free(evidence: Evidence, claim: Claim) -> Row:
    """An idle container uses less of each resource than an idle VM, beyond the equivalence margin."""
    metric = next((m for m in claim.metrics if evidence.frame.blocks(m, VM)), claim.metrics[0])
    container, vm = _side(evidence, claim, metric)
    chosen = vm[0].label
    both = [m for m in claim.metrics if all(evidence.frame.blocks(m, label) for label in (CONTAINER, chosen))]
    judged = {m: c for m in both if (c := evidence.comparisons.get(m)) is not None}
    less = [m for m, c in judged.items() if c.verdict is Verdict.SLOWER or _nothing_against(evidence, m, chosen)]
    more = [m for m, c in judged.items() if c.verdict in (Verdict.FASTER, Verdict.EQUIVALENT)]
    return settle(evidence, claim, container, vm, _fewer(judged, less, more), evidence.contrast(metric))


def _nothing_against(evidence: Evidence, metric: str, vm: str) -> bool:
    # A container that used nothing measurable has no ratio, yet it used less than any VM that used something.
    known = evidence.frame.metric(metric)
    if known is None or (known.hardware and evidence.frame.emulated(vm)):
        return False
    ours, theirs = (evidence.frame.blocks(metric, label) for label in (CONTAINER, vm))
    shared = ours.keys() & theirs.keys()
    return len(shared) >= stats.MIN_BLOCKS and all(ours[block] <= 0 < theirs[block] for block in shared)


def _fewer(judged: dict[str, Comparison], less: list[str], more: list[str]) -> tuple[Ruling, Message]:
    if judged and len(less) == len(judged):
        return Ruling.CONFIRMED, Message("half.idle.all", {"names": short_names(less)})
    if less:
        rest = [m for m in judged if m not in less]
        return Ruling.QUALIFIED, Message("half.idle.some", {"names": short_names(less), "rest": short_names(rest)})
    if judged and len(more) == len(judged):
        return Ruling.REFUTED, Message("half.idle.none")
    why = next((c.reason for c in judged.values() if c.reason), "")
    return Ruling.UNMEASURABLE, Message("half.idle.open", {"why": why}) if why else Message("half.idle.nothing")


def short_names(metrics: Iterable[str]) -> str:
    """Metrics without their workload, in words."""
    return ", ".join(_short(metric) for metric in metrics)
