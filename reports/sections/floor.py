"""The floors: native against itself under another label, the instrument's own cost; and every comparison drawn."""

from __future__ import annotations

from collections.abc import Iterator

from harness import stats
from harness.stats import Comparison, Effect
from reports.page import Column, Part, Table, Value
from reports.sections.base import Section, View
from reports.units import exact, times

INSTRUMENT = ("instrument.host_spawn", "instrument.command")
ABSENT = Value("—", absent=True)


class Floor(Section):
    """What counts as no difference, and which comparisons were drawn or refused."""

    order = 22

    def parts(self, view: View) -> Iterator[Part]:
        """A/A table, the instrument's own floor; comparisons table."""
        instrument = view.medians_table("floor-instrument", "What asking costs where nothing is done", INSTRUMENT)
        tables = (control_table(view), *((instrument,) if instrument.rows else ()))
        yield Part(slug="floor", heading=view.words.say("section.floor"), tables=tables)
        yield Part(slug="comparisons", heading=view.words.say("section.comparisons"), tables=(comparison_table(view),))


def control_table(view: View) -> Table:
    """For every metric that native and its twin both have: their ratio, its interval, and the margin δ from it."""
    controls = [(metric.name, view.evidence.control(metric.name)) for metric in view.frame.run.header.metrics]
    rows = tuple(
        _control(name, effect, view.evidence.controls)
        for name, effect in controls
        if effect and effect.estimate is not None
    )
    columns = (
        Column("Metric"), Column("Ratio", "×", number=True), Column("CI", number=True),
        Column("Margin δ", "%", number=True), Column("n", "blocks", number=True),
        Column("p (Bonferroni)", number=True), Column("±δ"),
    )  # fmt: skip
    note = "" if rows else "Native was not run twice in this run: there is no noise floor, and δ is 3 %."
    return Table(
        slug="floor-aa", caption="Two runs of the same thing (A/A)", columns=columns, rows=tuple(rows), note=note
    )


def _control(name: str, effect: Effect, controls: int) -> tuple[Value | str, ...]:
    estimate, interval = effect.estimate or 1.0, effect.interval
    ratio = Value(f"{estimate:.3f}", exact(estimate))
    if interval is None:
        return name, ratio, Value("too few blocks", absent=True), ABSENT, str(len(effect.logs)), ABSENT, ABSENT
    margin = stats.equivalence_margin(interval)
    return (
        name,
        ratio,
        Value(f"{interval.low:.3f}–{interval.high:.3f}", f"{exact(interval.low)} – {exact(interval.high)}"),
        Value(f"{margin * 100:.1f}", exact(margin)),
        str(interval.n),
        f"{stats.aa_p(effect, controls):.2g}",
        Value("outside", absent=True) if stats.aa_outside(effect, controls) else "inside",
    )


def comparison_table(view: View) -> Table:
    """VM against container for the claims' metrics, corrected together; refusals keep their figures and say why."""
    rows = tuple(_row(comparison) for comparison in view.evidence.comparisons.values())
    columns = (
        Column("Metric"), Column("Contender ÷ baseline"), Column("Ratio", "×", number=True), Column("CI", number=True),
        Column("n", "blocks", number=True), Column("p (Holm)", number=True), Column("Finding"), Column("Reason"),
    )  # fmt: skip
    note = "" if rows else "No two sides were measured: nothing can be compared."
    return Table(
        slug="comparisons-all", caption="Comparisons of the claims' metrics", columns=columns, rows=rows, note=note
    )


def _row(comparison: Comparison) -> tuple[Value | str, ...]:
    ratio = Value("no ratio", absent=True)
    if comparison.ratio is not None:
        ratio = Value(times(comparison.ratio), exact(comparison.ratio))
    known = comparison.ci_low is not None and comparison.ci_high is not None
    ends = f"{comparison.ci_low:.3g}–{comparison.ci_high:.3g}" if known else Value("no interval", absent=True)
    p_value = f"{comparison.p_value:.2g}" if comparison.p_value is not None else Value("not tested", absent=True)
    finding = f"refused: {comparison.refusal}" if comparison.refusal else str(comparison.verdict)
    return (
        comparison.metric, f"{comparison.contender} ÷ {comparison.baseline}", ratio, ends, str(comparison.n), p_value,
        finding, comparison.reason or "—",
    )  # fmt: skip
