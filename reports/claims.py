"""The claims under test, what this run measured for each, and the ruling on it.

A claim is text, metrics and thresholds from a claims file; how its ruling follows is a function of
`rules`, looked up by the name in the file. Rulings rest on the ends of confidence intervals, never
on point values, and every row exists whether or not there is anything to rule on.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import stats
from harness.results import Outcome, ResultsError
from harness.stats import Comparison, Interval, Series
from reports.frame import Frame, Message

SEED = Path(__file__).parent / "claims" / "seed.toml"
CONTAINER, VM, NATIVE = "container", "vm", "native"
NO_RATIO = ("ratio", "bool")  # units of figures around zero, of which a quotient says nothing
BITES = ("enforcement.limit_holds", "enforcement.cpu_bites", "enforcement.memory_bites")


class Ruling(StrEnum):
    """What the run says of a claim. UNMEASURED: no workload looked; UNMEASURABLE: one did, and may not conclude."""

    CONFIRMED = "confirmed"
    QUALIFIED = "qualified"
    REFUTED = "refuted"
    UNMEASURABLE = "unmeasurable"
    UNMEASURED = "unmeasured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim. `texts` maps a language to row, container, vm and question.

    `hardware`: not judged under software emulation. `stand_in`: a lighter VM may decide where the full one was
    not measured. `relative`: its figures are not compared VM ÷ container as they are.
    """

    id: str
    texts: dict[str, dict[str, str]]
    tested_by: str
    rule: str = ""
    metrics: tuple[str, ...] = ()
    hardware: bool = False
    stand_in: bool = False
    relative: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimSet:
    """A claims file: where the claims come from, and the claims in the order of the table."""

    source: str
    claims: tuple[Claim, ...]

    @classmethod
    def load(cls, path: Path = SEED) -> ClaimSet:
        """Read a claims file. Raises ResultsError for one that is malformed or names a claim twice."""
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
            claims = tuple(_claim(entry) for entry in raw["claim"])
            source = str(raw["source"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ResultsError(f"claims file {path}", f"malformed: {error!r}", "compare it with seed.toml") from error
        if len({claim.id for claim in claims}) < len(claims):
            raise ResultsError(f"claims file {path}", "a claim's id appears twice", "make the ids unique")
        return cls(source=source, claims=claims)


def _claim(entry: dict[str, Any]) -> Claim:
    known = {
        key: entry[key]
        for key in ("id", "tested_by", "rule", "hardware", "stand_in", "relative", "limits")
        if key in entry
    }
    texts = {key: value for key, value in entry.items() if key in ("en", "zh")}
    return Claim(texts=texts, metrics=tuple(entry["metrics"]), **known)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One driver's figure for one metric: the median over blocks with its interval, or `why` there is none.

    `note` is said behind the figure (an antagonist, a limiter). `at_least` marks a lower bound, `mark` a VM
    that is not known to be virtualised by hardware.
    """

    label: str
    metric: str
    unit: str
    value: float | None = None
    interval: Interval | None = None
    n: int = 0
    mark: str = ""
    at_least: bool = False
    why: Message | None = None
    note: Message | None = None

    @property
    def emulated(self) -> bool:
        """Whether the figure is a VM's without known hardware virtualisation."""
        return bool(self.mark)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """VM against container: a ratio (`×`) or a difference in points (`pp`), or `why` it is absent or refused."""

    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    code: str = ""
    why: Message | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the claims table. The first estimate of a side decides; the others stand beside it."""

    claim: Claim
    ruling: Ruling
    reason: Message
    container: tuple[Estimate, ...] = ()
    vm: tuple[Estimate, ...] = ()
    contrast: Contrast | None = None
    n: int = 0


@dataclass(frozen=True)
class Evidence:
    """What rules ask of a run: estimates, comparisons corrected across the claims, the A/A control."""

    frame: Frame
    claims: ClaimSet

    def sides(self, claim: Claim) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Labels to show for container and VM, the deciding one first even where it is not part of the run.

        Where the claim allows it (`stand_in`), another VM that was measured decides in place of one that was not.
        Other containers are comparators, and are shown where they were measured: most workloads leave them out.
        """
        rest = [
            [label for label in self.frame.labels(kind) if label != kind and "~" not in label]
            for kind in (CONTAINER, VM)
        ]
        rest[0] = [label for label in rest[0] if any(self.frame.blocks(metric, label) for metric in claim.metrics)]
        containers, vms = [CONTAINER, *rest[0]], [VM, *rest[1]]
        if claim.stand_in and not self.frame.blocks(claim.metrics[0], VM):
            vms.sort(key=lambda label: not self.frame.blocks(claim.metrics[0], label))
        return tuple(containers), tuple(vms)

    def estimate(self, metric: str, label: str, **where: str) -> Estimate:
        """The median over blocks of `metric` for `label`, restricted to samples labelled `where`."""
        blocks = self.frame.blocks(metric, label, **where)
        return self.summary(metric, label, blocks, self.frame.unit(metric))

    def summary(self, metric: str, label: str, blocks: Mapping[int, float], unit: str) -> Estimate:
        """An estimate of given figures per block; says why if there are none."""
        mark = self.frame.mark(label)
        if not blocks:
            why = self.frame.why_absent(metric, label)
            return Estimate(label=label, metric=metric, unit=unit, why=why, mark=mark)
        interval = stats.median_interval(list(blocks.values()))
        value = interval.estimate if interval else stats.quantile(list(blocks.values()), 0.5)
        return Estimate(label=label, metric=metric, unit=unit, value=value, interval=interval, n=len(blocks), mark=mark)

    def series(self, metric: str, label: str, **where: str) -> Series:
        """The per-block figures with each block's position and the steal during it."""
        records = [
            record for record in self.frame.records(self.frame.workload(metric), label) if record.outcome is Outcome.OK
        ]
        return Series(
            label=label,
            values=self.frame.blocks(metric, label, **where),
            positions={record.block: record.position for record in records},
            steal={record.block: record.host_state["steal"] for record in records if "steal" in record.host_state},
            warming=self._warming(metric, label, where),
        )

    def _warming(self, metric: str, label: str, where: Mapping[str, str]) -> dict[int, float]:
        """How much each block's iterations moved; samples in their order, without warm-up."""
        found: dict[int, list[float]] = {}
        for block, value, labels in self.frame.values(metric, label, **where):
            if "iteration" in labels:
                found.setdefault(block, []).append(value)
        changes = {block: stats.warming(values) for block, values in found.items()}
        return {block: change for block, change in changes.items() if change is not None}

    def control(self, metric: str, **where: str) -> stats.Effect | None:
        """The A/A effect of `metric`: native's twin against native, or None where either has no figures."""
        twin = next((label for label in self.frame.labels(NATIVE) if "~" in label), None)
        if twin is None or self.frame.unit(metric) in NO_RATIO:
            return None
        pair = [self.frame.blocks(metric, label, **where) for label in (NATIVE, twin)]
        return stats.ratio(*pair, seed=self.frame.run.header.seed) if all(pair) else None

    @cached_property
    def controls(self) -> int:
        """How many metrics of the run have a control that can be judged."""
        found = (self.control(metric.name) for metric in self.frame.run.header.metrics)
        return sum(effect is not None and effect.interval is not None for effect in found)

    def compare(self, metric: str, baseline: str, contender: str, **where: str) -> Comparison | None:
        """`contender` against `baseline`, uncorrected; None for a metric that the run does not define."""
        known = self.frame.metric(metric)
        if known is None:
            return None
        return stats.compare(
            known,
            self.series(metric, baseline, **where),
            self.series(metric, contender, **where),
            aa=self.control(metric, **where),
            controls=self.controls,
            emulated=self.frame.emulated(contender) or self.frame.emulated(baseline),
            parity=self.broken_parity(baseline, contender) if known.hardware else "",
            limit=self.broken_limits(baseline, contender),
            resolution=self._resolution if known.unit == "s" else 0.0,
            seed=self.frame.run.header.seed,
        )

    def broken_limits(self, *labels: str) -> str:
        """Which limits of these drivers the host does not hold or that do not bite, in words; empty if all do."""
        names = {label.partition("~")[0] for label in labels} - {NATIVE}
        unheld = [
            f"{limit.get('name')} of {facts.driver} is not held by the host"
            for facts in self.frame.run.facts
            if facts.driver in names
            for limit in facts.limits
            if not limit.get("holds", True)
        ]
        toothless = [
            f"{metric.partition('.')[2]} failed on {name}"
            for name in sorted(names)
            for metric in BITES
            if any(value == 0 for value in self.frame.blocks(metric, name).values())
        ]
        return "; ".join(dict.fromkeys(unheld + toothless))

    def broken_parity(self, *labels: str) -> str:
        """What these drivers were not given alike, in words; empty where all is equal or was not told.

        Native has no limits, so that only its CPU model counts; a model that an emulator makes up counts for nothing.
        """
        told = {facts.driver: facts for facts in self.frame.run.facts}
        names = [name for name in dict.fromkeys(label.partition("~")[0] for label in labels) if name in told]
        limited = [name for name in names if name != NATIVE]
        given: dict[str, dict[str, str]] = {
            "CPU model": {n: told[n].facts.get("cpu_model", "") for n in names if not self.frame.emulated(n)},
            "CPUs": {n: self._cpus(told[n].facts) for n in limited},
        }
        for name in limited:
            for limit in told[name].limits:
                what = f"{limit.get('name')} ({str(limit.get('source', '')).rpartition('/')[2]})"
                given.setdefault(what, {})[name] = str(limit.get("read", ""))
        return "; ".join(
            f"{what}: " + ", ".join(f"{value} on {name}" for name, value in values.items())
            for what, values in given.items()
            if len({value for value in values.values() if value}) > 1
        )

    def _cpus(self, facts: Mapping[str, str]) -> str:
        """How many CPUs an instance may use: those it sees, bounded by the quota that every driver was given."""
        quota = self.frame.run.header.settings.get("limits", {}).get("cpus")
        seen = facts.get("cpus", "")
        return f"{min(float(seen), float(quota or seen)):g}" if seen.isdigit() else ""

    @property
    def _resolution(self) -> float:
        step_ns = self.frame.run.header.host.get("clock", {}).get("monotonic_step_ns")
        return step_ns / 1e9 if isinstance(step_ns, (int, float)) else 0.0

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """VM against container for the metrics of every claim, corrected together (Holm)."""
        claims = [claim for claim in self.claims.claims if claim.rule and not claim.relative]
        names = {metric: self.sides(claim)[1][0] for claim in claims for metric in claim.metrics}
        pairs = [(name, self.compare(name, CONTAINER, vm)) for name, vm in names.items()]
        found = [(name, comparison) for name, comparison in pairs if comparison is not None]
        corrected = stats.correct([comparison for _, comparison in found])
        return dict(zip((name for name, _ in found), corrected, strict=True))

    def contrast(self, metric: str) -> Contrast:
        """The ratio VM ÷ container of `metric` as the table shows it."""
        comparison = self.comparisons.get(metric)
        if comparison is None:
            return Contrast(unit="×", why=Message("absent.no_workload"))
        return contrast_of(comparison)

    @property
    def claims_nothing(self) -> bool:
        """Whether the run's profile exists to test the suite and may conclude nothing."""
        return self.frame.run.header.profile == "smoke"


def contrast_of(comparison: Comparison) -> Contrast:
    """A comparison as a table's ratio; a refused one keeps its figures and says its code and reason."""
    code = str(comparison.refusal) if comparison.refusal else ""
    why = Message("plain", {"text": comparison.reason}) if comparison.reason else None
    return Contrast(
        unit="×",
        value=comparison.ratio,
        low=comparison.ci_low,
        high=comparison.ci_high,
        n=comparison.n,
        code=code,
        why=why,
    )


Rule = Callable[[Evidence, Claim], Row]


def judge(evidence: Evidence) -> tuple[Row, ...]:
    """One row a claim, in the file's order. Raises ResultsError for a rule that does not exist."""
    return tuple(_rows(evidence))


def _rows(evidence: Evidence) -> Iterator[Row]:
    from reports import mechanisms  # noqa: F401 - registers its rules
    from reports.rules import RULES

    for claim in evidence.claims.claims:
        if not claim.rule:
            yield Row(claim=claim, ruling=Ruling.UNMEASURED, reason=Message("reason.no_workload"))
            continue
        if claim.rule not in RULES:
            raise ResultsError(f"claim {claim.id}", f"no rule {claim.rule!r}", f"choose from {', '.join(RULES)}")
        yield RULES[claim.rule](evidence, claim)
