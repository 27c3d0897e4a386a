"""Comparators: other ways to a container on this host, which of them were found, and how they stand to ours.

No claim is about them: the ratios tell what our own runtime's figures are worth beside the ones that people use.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.results import DriverEntry
from reports.claims import CONTAINER, NO_RATIO
from reports.page import Column, Part, Table, Value
from reports.sections.base import Section, View
from reports.units import exact, human, times

_DIGEST_SHOWN = 12
_NOT_ALIKE = ("startup.spawned",)  # the process exists: each driver learns of it at another moment


class Comparators(Section):
    """Ratios of what both sides were measured at; then every comparator, with what it is or why it was not measured."""

    order = 11

    def parts(self, view: View) -> Iterator[Part]:
        """One part, where a run was to have comparators."""
        others = [each for each in view.frame.run.header.drivers if each.kind == CONTAINER and each.name != CONTAINER]
        if others:
            tables = (ratio_table(view, others), found_table(others))
            yield Part(slug="comparators", heading=view.words.say("section.comparators"), tables=tables)


def ratio_table(view: View, others: list[DriverEntry]) -> Table:
    """One row a metric and comparator: both medians, and theirs ÷ ours over the blocks that hold both."""
    frame = view.frame
    rows = [
        _row(view, metric.name, entry.name)
        for metric in frame.run.header.metrics
        for entry in others
        if metric.unit not in NO_RATIO
        and metric.name not in _NOT_ALIKE
        and frame.blocks(metric.name, entry.name)
        and frame.blocks(metric.name, CONTAINER)
    ]
    columns = (
        Column("Metric"), Column("Driver"), Column("Its median", number=True), Column("Ours", number=True),
        Column("Ratio", "×", number=True), Column("CI", number=True), Column("n", "blocks", number=True),
        Column("Finding"),
    )  # fmt: skip
    note = "No claim rests on these; they are not corrected with those that one does." if rows else (
        "Nothing was measured on both a comparator and our container driver."
    )  # fmt: skip
    return Table(
        slug="comparators-ratios", caption="Comparators ÷ our container driver", columns=columns, rows=tuple(rows),
        note=note,
    )  # fmt: skip


def _row(view: View, metric: str, name: str) -> tuple[Value | str, ...]:
    theirs, ours = (view.evidence.estimate(metric, label) for label in (name, CONTAINER))
    medians = [
        Value("—", absent=True) if each.value is None else Value(human(each.value, each.unit, 3), exact(each.value))
        for each in (theirs, ours)
    ]
    judged = view.evidence.compare(metric, CONTAINER, name)
    if judged is None or judged.ratio is None:
        return metric, name, *medians, Value("no ratio", absent=True), Value("—", absent=True), "0", "—"
    known = judged.ci_low is not None and judged.ci_high is not None
    ends = f"{judged.ci_low:.3g}–{judged.ci_high:.3g}" if known else Value("too few blocks", absent=True)
    finding = f"refused: {judged.refusal}" if judged.refusal else str(judged.verdict)
    return metric, name, *medians, Value(times(judged.ratio), exact(judged.ratio)), ends, str(judged.n), finding


def found_table(others: list[DriverEntry]) -> Table:
    """Every comparator that the run was to have."""
    rows = []
    for entry in others:
        why = f"does not work here: {entry.reason}" + (f" ({entry.mend})" if entry.mend else "")
        told = [entry.facts.get(name, "") for name in ("version", "sha256", "called")]
        told[1] = told[1][:_DIGEST_SHOWN]
        rows.append((entry.name, "works" if entry.usable else why, *(each or Value("—", absent=True) for each in told)))
    columns = (Column("Driver"), Column("State"), Column("Version"), Column("SHA-256"), Column("How it was called"))
    return Table(
        slug="comparators-found", caption="Which comparators were found, and why others were not", columns=columns,
        rows=tuple(rows),
    )  # fmt: skip
