"""The noise floor: native against itself under another label, and every comparison drawn from the run."""

from __future__ import annotations

from collections.abc import Iterator

from harness import stats
from harness.stats import Comparison
from reports.page import Column, Part, Table, Value
from reports.sections.base import Section, View
from reports.units import exact, times

ABSENT = Value("—", absent=True)


class Floor(Section):
    """What counts as no difference, and which comparisons were drawn or refused."""

    order = 22

    def parts(self, view: View) -> Iterator[Part]:
        """A/A table; comparisons table."""
        yield Part(slug="floor", heading=view.words.say("section.floor"), tables=(control_table(view),))
        yield Part(slug="comparisons", heading=view.words.say("section.comparisons"), tables=(comparison_table(view),))


def control_table(view: View) -> Table:
    """For every metric that native and its twin both have: their ratio, its interval, and the margin δ from it."""
    rows = []
    for metric in view.frame.run.header.metrics:
        effect = view.evidence.control(metric.name)
        if effect is None or effect.estimate is None:
            continue
        interval = effect.interval
        if interval is None:
            rows.append((metric.name, Value(times(effect.estimate), exact(effect.estimate)), Value("too few blocks", absent=True), ABSENT, str(len(effect.logs)), ABSENT))
            continue
        outside = stats.aa_outside(interval)
        rows.append((
            metric.name,
            Value(times(interval.estimate), exact(interval.estimate)),
            Value(f"{interval.low:.3f}–{interval.high:.3f}", f"{exact(interval.low)} – {exact(interval.high)}"),
            Value(f"{stats.equivalence_margin(interval) * 100:.1f}", exact(stats.equivalence_margin(interval))),
            str(interval.n),
            Value("outside", absent=True) if outside else "inside",
        ))  # fmt: skip
    columns = (
        Column("Metric"), Column("Ratio", "×", number=True), Column("CI", number=True), Column("Margin δ", "%", number=True),
        Column("n", "blocks", number=True), Column("±δ"),
    )  # fmt: skip
    note = "" if rows else "Native was not run twice in this run: there is no noise floor, and δ is 3 %."
    return Table(slug="floor-aa", caption="Two runs of the same thing (A/A)", columns=columns, rows=tuple(rows), note=note)


def comparison_table(view: View) -> Table:
    """VM against container for the claims' metrics, corrected together; refusals keep their figures and say why."""
    rows = tuple(_row(comparison) for comparison in view.evidence.comparisons.values())
    columns = (
        Column("Metric"), Column("Contender ÷ baseline"), Column("Ratio", "×", number=True), Column("CI", number=True),
        Column("n", "blocks", number=True), Column("p (Holm)", number=True), Column("Finding"), Column("Reason"),
    )  # fmt: skip
    note = "" if rows else "No two sides were measured: nothing can be compared."
    return Table(slug="comparisons-all", caption="Comparisons of the claims' metrics", columns=columns, rows=rows, note=note)


def _row(comparison: Comparison) -> tuple[Value | str, ...]:
    ratio = Value(times(comparison.ratio), exact(comparison.ratio)) if comparison.ratio is not None else Value("no ratio", absent=True)
    known = comparison.ci_low is not None and comparison.ci_high is not None
    ends = f"{comparison.ci_low:.3g}–{comparison.ci_high:.3g}" if known else Value("no interval", absent=True)
    p_value = f"{comparison.p_value:.2g}" if comparison.p_value is not None else Value("not tested", absent=True)
    finding = f"refused: {comparison.refusal}" if comparison.refusal else str(comparison.verdict)
    return (
        comparison.metric, f"{comparison.contender} ÷ {comparison.baseline}", ratio, ends, str(comparison.n), p_value,
        finding, comparison.reason or "—",
    )  # fmt: skip
