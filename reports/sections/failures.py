"""Failures, skips and turns of the run: counted in view, never averaged away."""

from __future__ import annotations

from collections.abc import Iterator

from harness.results import Outcome
from reports.page import Column, Part, Table
from reports.sections.base import Section, View


class Failures(Section):
    """Every record that is no figure, then how the run went."""

    order = 23

    def parts(self, view: View) -> Iterator[Part]:
        """A table of failures and skips, and one of events."""
        tallies = view.frame.tallies
        failed, attempted = sum(t.failed for t in tallies), sum(t.attempted for t in tallies)
        skipped = sum(t.skipped for t in tallies)
        yield Part(
            slug="failures",
            heading=view.words.say("section.failures"),
            answer=f"{failed} of {attempted} attempted measurements failed; {skipped} were skipped.",
            tables=(failure_table(view), event_table(view)),
        )


def failure_table(view: View) -> Table:
    """One row a record that failed or was skipped."""
    rows = tuple(
        (str(record.cell), str(record.block), str(record.outcome), record.reason, f"{record.elapsed_ns / 1e9:.1f}")
        for record in view.frame.run.records
        if record.outcome is not Outcome.OK
    )
    columns = (
        Column("Cell"),
        Column("Block", number=True),
        Column("Outcome"),
        Column("Reason"),
        Column("After", "s", number=True),
    )
    note = "" if rows else "Nothing failed and nothing was skipped."
    return Table(slug="failures-all", caption="Records without a figure", columns=columns, rows=rows, note=note)


def event_table(view: View) -> Table:
    """The run's events with their figures."""
    rows = tuple(
        (
            event.event,
            event.at_utc,
            ", ".join(f"{key} {value:.4g}" for key, value in event.figures.items()) or "—",
            event.detail or "—",
        )
        for event in view.frame.run.events
    )
    columns = (Column("Event"), Column("At (UTC)"), Column("Figures"), Column("Detail"))
    note = "" if rows else "No events were recorded."
    return Table(slug="events", caption="How the run went", columns=columns, rows=rows, note=note)
