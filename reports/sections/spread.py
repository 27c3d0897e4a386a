"""The spread: first iterations, tails and outliers of every figure that has several samples; nothing is dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness import stats
from harness.results import Outcome
from harness.stats import Outlier
from reports.page import Column, Part, Table, Value
from reports.sections.base import Section, View
from reports.units import exact, human

FEWEST = 4  # fewer have no quartiles
TAILS = (0.9, 0.95, 0.99)


class Spread(Section):
    """One row a metric and driver, over all samples of all blocks."""

    order = 22

    def parts(self, view: View) -> Iterator[Part]:
        """The table, and how to read it."""
        yield Part(
            slug="spread",
            heading=view.words.say("section.spread"),
            tables=(table(view),),
            method=(
                "The first iteration of a block, where more followed, is a figure of its own: its median over blocks.",
                "A percentile stands only where at least ten samples can lie beyond it: n ≥ 10 ÷ (1 − q).",
                "Mild and severe: more than 1.5 and 3 interquartile ranges beyond the box (Tukey). They stay in.",
            ),
        )


def table(view: View) -> Table:
    """Metrics in the run's order, drivers in the frame's; a cell that has no figure says why."""
    metrics = [metric for metric in view.frame.run.header.metrics if metric.unit != "bool"]
    found = (_row(view, metric.name, metric.unit, label) for metric in metrics for label in view.frame.labels())
    rows = tuple(row for row in found if row)
    columns = (
        Column("Metric"), Column("Driver"), Column("n", "samples", number=True), Column("First", number=True),
        Column("Median", number=True), *(Column(f"p{q * 100:g}", number=True) for q in TAILS),
        Column("Mild", "outliers", number=True), Column("Severe", "outliers", number=True),
    )  # fmt: skip
    return Table(
        slug="spread-all",
        caption="First iterations, percentiles and outliers of all samples",
        columns=columns,
        rows=rows,
        note="" if rows else f"No figure has {FEWEST} samples.",
        folded=True,
    )


def _row(view: View, metric: str, unit: str, label: str) -> tuple[Value | str, ...]:
    values = [value for _, value, _ in view.frame.values(metric, label)]
    if len(values) < FEWEST:
        return ()
    mark, classes, first = view.frame.mark(label), stats.tukey_classes(values), first_iterations(view, metric, label)
    return (
        metric,
        label,
        str(len(values)),
        _figure(stats.quantile(first, 0.5), unit, mark) if first else Value("—", absent=True),
        _figure(stats.quantile(values, 0.5), unit, mark),
        *(_tail(values, q, unit, mark) for q in TAILS),
        *(str(classes.count(kind)) for kind in (Outlier.MILD, Outlier.SEVERE)),
    )


def first_iterations(view: View, metric: str, label: str) -> list[float]:
    """Iteration 0 of every block that has more than one, warm-up or not."""
    found = []
    for record in view.frame.records(view.frame.workload(metric), label):
        samples = [sample for sample in record.samples if sample.metric == metric and "iteration" in sample.labels]
        if record.outcome is Outcome.OK and len(samples) > 1:
            found += [float(sample.value) for sample in samples if sample.labels["iteration"] == "0"]
    return found


def _tail(values: Sequence[float], q: float, unit: str, mark: str) -> Value:
    tail = stats.tail(values, q)
    if tail.value is None:
        return Value("too few samples", exact=tail.reason, absent=True)
    return _figure(tail.value, unit, mark)


def _figure(value: float, unit: str, mark: str) -> Value:
    return Value(human(value, unit, 3), exact(value), mark)
