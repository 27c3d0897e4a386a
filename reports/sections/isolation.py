"""Isolation: what a victim loses of its entitlement beside each antagonist, and beside none."""

from __future__ import annotations

from collections.abc import Iterator

from reports import cells, figures
from reports.claims import Row
from reports.page import Column, Figure, Table, Value
from reports.rules import placebo_noise
from reports.sections.base import ClaimSection, View, sample_table
from reports.units import exact, human, span

LEAK = "leakage.leak"


class Isolation(ClaimSection):
    """Leakage against entitlement, with the placebo as its floor."""

    claim = "isolation"
    metrics = (
        "enforcement.limit_holds",
        "enforcement.cpu_overrun",
        "enforcement.cpu_bites",
        "enforcement.memory_bites",
    )
    method = (
        "Leakage is 1 − (work beside the antagonist ÷ work alone under the same limits); zero is: got its due.",
        "The placebo is an idle neighbour: it shows the false alarms; nothing inside its spread is called a leak.",
        "Limits are read back and made to bite; one that does not hold or does not bite refuses the comparison.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """Leak per driver and antagonist with the placebo among them; then the victim's rate in time order."""
        names = sorted(view.frame.conditions(LEAK, "antagonist"), key=lambda name: (name != "placebo", name))
        lanes = [
            view.lane(
                label, list(blocks.items()), view.evidence.estimate(LEAK, label, antagonist=name), f"{name}, {label}"
            )
            for name in names
            for label in view.frame.labels()
            if (blocks := view.frame.blocks(LEAK, label, antagonist=name))
        ]
        if lanes:
            noise = placebo_noise(
                view.evidence,
                LEAK,
                view.frame.labels("container") + view.frame.labels("vm"),
                row.claim.limits["points"],
            )
            yield figures.forest(
                "isolation-leak",
                "Work lost of what was entitled to; the band is what the placebo moves",
                "; ".join(f"{lane.shown}: {human(lane.interval[0], 'ratio')}" for lane in lanes if lane.interval)
                or "no intervals",
                lanes,
                "leakage",
                unit="ratio",
                band=(-noise, noise),
                centre=0.0,
                data=leak_table(view, names),
            )
        rates = view.medians("leakage.rate", condition="placebo")
        if rates:
            yield from figures.drift(
                "isolation-order",
                "The victim beside the placebo, block by block, each against its own median: what is noise",
                rates,
                data=sample_table("isolation-order-data", "Work rate", rates, view.frame.unit("leakage.rate")),
            )

    def tables(self, view: View, row: Row) -> Iterator[Table]:
        """The leakage matrix, then rates and enforcement."""
        names = view.frame.conditions(LEAK, "antagonist")
        if names:
            yield leak_table(view, list(names), "isolation-matrix")
        yield rate_table(view)
        yield from super().tables(view, row)


def leak_table(view: View, names: list[str], slug: str = "isolation-leak-data") -> Table:
    """One row a driver and antagonist: leak, interval, n."""
    columns = (
        Column("Driver"),
        Column("Beside"),
        Column("Leak", "%", number=True),
        Column("CI", number=True),
        Column("n", "blocks", number=True),
    )
    rows = []
    for label in view.frame.labels():
        for name in names:
            estimate = view.evidence.estimate(LEAK, label, antagonist=name)
            if estimate.value is None:
                continue
            interval = estimate.interval
            ends = span(interval.low, interval.high, "ratio") if interval else "too few blocks"
            leak = Value(f"{estimate.value * 100:.1f}", exact(estimate.value), estimate.mark)
            rows.append((label, name, leak, ends, str(estimate.n)))
    return Table(slug=slug, caption="Leakage, signed, by driver and antagonist", columns=columns, rows=tuple(rows))


def rate_table(view: View) -> Table:
    """The victim's work rate alone and beside each neighbour."""
    conditions = view.frame.conditions("leakage.rate", "condition")
    unit = view.frame.unit("leakage.rate")
    columns = (Column("Driver"), *(Column(condition, unit, number=True) for condition in conditions))
    rows: list[tuple[Value | str, ...]] = []
    for label in view.frame.labels():
        estimates = [view.evidence.estimate("leakage.rate", label, condition=name) for name in conditions]
        if any(estimate.value is not None for estimate in estimates):
            rows.append((label, *(cells.cell(estimate, view.words) for estimate in estimates)))
    return Table(
        slug="isolation-rates",
        caption="The victim's rate, median over blocks",
        columns=columns,
        rows=tuple(rows),
        folded=True,
    )
