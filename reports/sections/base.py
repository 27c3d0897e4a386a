"""What a section of the report is given and must give back; the registry that finds the sections.

A new section is one new file in this package: a subclass of `Section` with an `order`, or of
`ClaimSection` with the id of the claim whose evidence it shows.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import reports.sections
from reports import cells
from reports.claims import NATIVE, Estimate, Evidence, Row, Ruling
from reports.figures import Lane
from reports.frame import Frame
from reports.page import Column, Figure, Part, Table, Value
from reports.units import exact, human, span
from reports.words import Words


@dataclass(frozen=True, slots=True)
class View:
    """All that a section may look at."""

    evidence: Evidence
    rows: tuple[Row, ...]
    words: Words

    @property
    def frame(self) -> Frame:
        """The run's data."""
        return self.evidence.frame

    def kind(self, label: str) -> str:
        """native, container or vm."""
        entry = self.frame.run.header.driver(label.partition("~")[0])
        return entry.kind if entry else NATIVE

    def lanes(self, metric: str, labels: Sequence[str] | None = None, **where: str) -> list[Lane]:
        """Every measured sample of `metric`, one lane a label that has any, points as (block, value)."""
        found = []
        for label in labels if labels is not None else self.frame.labels():
            values = self.frame.values(metric, label, **where)
            estimate = self.evidence.estimate(metric, label, **where)
            if values:
                found.append(self.lane(label, [(block, value) for block, value, _ in values], estimate))
        return found

    def medians(self, metric: str, labels: Sequence[str] | None = None, **where: str) -> list[Lane]:
        """The same with one point a block: its median."""
        chosen = labels if labels is not None else self.frame.labels()
        pairs = [(label, self.frame.blocks(metric, label, **where)) for label in chosen]
        return [self.lane(label, list(blocks.items())) for label, blocks in pairs if blocks]

    def lane(
        self, label: str, points: Sequence[tuple[float, float]], estimate: Estimate | None = None, name: str = ""
    ) -> Lane:
        """A lane of `label` with its kind, its TCG mark and the interval of `estimate`."""
        interval = estimate.interval if estimate else None
        return Lane(
            name=name or label,
            label=label,
            kind=self.kind(label),
            points=tuple(points),
            mark=self.frame.mark(label),
            interval=(interval.estimate, interval.low, interval.high) if interval else None,
        )

    def summary(self, slug: str, caption: str, metrics: Sequence[str]) -> Table:
        """One row a metric and driver: median, interval, n, attempts and failures, or why there is no figure."""
        columns = (
            Column("Metric"), Column("Driver"), Column("Median", number=True), Column("CI", number=True),
            Column("Confidence", unit="%", number=True), Column("n", unit="blocks", number=True),
            Column("Failed", number=True),
        )  # fmt: skip
        known = [metric for metric in metrics if self.frame.metric(metric) is not None]
        rows = [self._summary_row(metric, label) for metric in known for label in self._drivers()]
        return Table(slug=slug, caption=caption, columns=columns, rows=tuple(rows), folded=True)

    def medians_table(self, slug: str, caption: str, metrics: Sequence[str]) -> Table:
        """One row a metric, one column a driver: the median with its interval under it, or why there is none."""
        drivers = [label for label in self._drivers() if "~" not in label]
        rows: list[tuple[Value | str, ...]] = [
            (metric, *(self._median(metric, label) for label in drivers))
            for metric in metrics
            if self.frame.metric(metric) is not None
        ]
        lacking = [metric for metric in metrics if self.frame.metric(metric) is None]
        note = f"No workload of this run looks at {', '.join(lacking)}." if lacking else ""
        columns = (Column("Metric"), *(Column(label, number=True) for label in drivers))
        return Table(slug=slug, caption=caption, columns=columns, rows=tuple(rows), note=note)

    def _median(self, metric: str, label: str) -> Value:
        estimate = self.evidence.estimate(metric, label)
        if estimate.value is None:
            return cells.cell(estimate, self.words)
        interval = estimate.interval
        note = span(interval.low, interval.high, estimate.unit, 3) if interval else ""
        mark = estimate.mark
        return Value(human(estimate.value, estimate.unit, 3), exact(estimate.value), mark, note=note)

    def _drivers(self) -> tuple[str, ...]:
        listed = self.frame.labels()
        return listed or tuple(entry.name for entry in self.frame.run.header.drivers)

    def _summary_row(self, metric: str, label: str) -> tuple[Value | str, ...]:
        estimate = self.evidence.estimate(metric, label)
        tally = self.frame.tally(self.frame.workload(metric), label)
        failed = f"{tally.failed} of {tally.attempted}" if tally else "not run"
        if estimate.value is None:
            return metric, label, cells.cell(estimate, self.words), *(Value("—", absent=True),) * 2, "0", failed
        value = Value(human(estimate.value, estimate.unit, 3), exact(estimate.value), estimate.mark)
        interval = estimate.interval
        if interval is None:
            return metric, label, value, *(Value("too few blocks", absent=True),) * 2, str(estimate.n), failed
        ends = Value(
            span(interval.low, interval.high, estimate.unit, 3), f"{exact(interval.low)} – {exact(interval.high)}"
        )
        return metric, label, value, ends, f"{interval.confidence * 100:.1f}", str(estimate.n), failed


class Section(ABC):
    """One part of the report. `order` places it behind the claims; `parts` may give none."""

    order: ClassVar[int]
    _registry: ClassVar[list[type[Section]]] = []

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Section._registry.append(cls)

    @abstractmethod
    def parts(self, view: View) -> Iterator[Part]:
        """Build the section's parts from the run."""


class ClaimSection(Section):
    """The evidence of one claim, all alike: question, answer, charts, figures, method, failures."""

    claim: ClassVar[str]
    order = 0
    metrics: ClassVar[tuple[str, ...]] = ()
    method: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """The chart that shows it, then the one that could overturn it."""

    def tables(self, view: View, row: Row) -> Iterator[Table]:
        """The numbers."""
        name = view.words.own_text(row.claim.texts, "row")
        yield view.medians_table(f"{self.claim}-medians", view.words.say("section.medians", row=name), self.metrics)
        yield view.summary(f"{self.claim}-numbers", view.words.say("section.all_figures", row=name), self.metrics)

    def answer(self, view: View, row: Row) -> str:
        """One or two sentences written from the data: figures with their uncertainty, then the ruling."""
        first = row.container[0], row.vm[0]
        key = self.claim if all(estimate.value is not None for estimate in first) else "gap"
        container, vm = (cells.sentence(estimate, view.words) for estimate in first)
        said = view.words.say(f"answer.{key}", container=container, vm=vm)
        return f"{said} {ruling_sentence(view, row)}"

    def parts(self, view: View) -> Iterator[Part]:
        """One part, for the claim's row."""
        row = next((row for row in view.rows if row.claim.id == self.claim), None)
        if row is None:
            return
        yield Part(
            slug=self.claim,
            heading=view.words.own_text(row.claim.texts, "question"),
            answer=self.answer(view, row) if row.ruling is not Ruling.UNMEASURED else ruling_sentence(view, row),
            verdict=row.ruling,
            paragraphs=(view.words.say("answer.one_block"),) if view.frame.block_count == 1 else (),
            figures=tuple(self.figures(view, row)),
            tables=tuple(self.tables(view, row)),
            method=self.method,
            failures=cells.failures(view.frame, (*self.metrics, *row.claim.metrics), view.words),
        )


def ruling_sentence(view: View, row: Row) -> str:
    """The ruling of a row as a sentence."""
    word = view.words.say(f"verdict.{row.ruling}")
    return view.words.say("answer.ruling", verdict=word, reason=view.words.tell(row.reason))


def sample_table(slug: str, caption: str, lanes: Sequence[Lane], unit: str, along: str = "Block") -> Table:
    """The points of a chart as a table, for the disclosure under it."""
    columns = (Column("Driver"), Column(along, number=True), Column("Value", unit=unit, number=True))
    rows = tuple((lane.shown, f"{x:g}", Value(f"{y:.6g}", exact(y))) for lane in lanes for x, y in lane.points[:400])
    left = sum(max(0, len(lane.points) - 400) for lane in lanes)
    note = f"{left} further points are in the samples file." if left else ""
    return Table(slug=slug, caption=caption, columns=columns, rows=rows, note=note)


def sections() -> list[type[Section]]:
    """Every section, claims' first in the order of their modules' registration, then by `order`."""
    for module in pkgutil.iter_modules(reports.sections.__path__):
        importlib.import_module(f"reports.sections.{module.name}")
    return sorted((s for s in Section._registry if not inspect.isabstract(s)), key=lambda section: section.order)
