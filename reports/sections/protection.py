"""Protection: what a guarded instance keeps beside hogs."""

from __future__ import annotations

from collections.abc import Iterator

from reports import figures
from reports.claims import Row
from reports.figures import Bound
from reports.page import Column, Figure, Table, Value
from reports.sections.base import ClaimSection, View, sample_table
from reports.units import exact, human

KEPT = "protection.kept"


class Protection(ClaimSection):
    """What is kept under each guard, against the bar."""

    claim = "max-only"
    method = (
        "The victim's rate beside hogs ÷ its rate with the neighbour frozen. Nobody's CPU time is capped.",
        "Guards: weights 10000 to 100; a CPU of the victim's own. The bar of 90 % is resctl-bench's.",
        "Reservations of memory act under pressure on the whole host, which is not made: they are not measured.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """Every sample, one lane a guard and driver."""
        lanes = [
            view.lane(label, points, None, f"{guard}, {label}")
            for guard in view.frame.conditions(KEPT, "guard")
            for label in view.frame.labels()
            if (points := [(float(block), value) for block, value, _ in view.frame.values(KEPT, label, guard=guard)])
        ]
        if lanes:
            yield figures.dots(
                "protection-kept",
                "Work kept beside hogs, by what guards the victim; the line is the bar",
                "; ".join(f"{lane.shown}: {human(lane.points[0][1], '1')}" for lane in lanes),
                lanes,
                "1",
                "rate beside hogs ÷ rate alone",
                bounds=[Bound(row.claim.limits["kept"], "kept")],
                data=sample_table("protection-kept-data", "Work kept, every sample", lanes, "ratio"),
            )

    def tables(self, view: View, row: Row) -> Iterator[Table]:
        """One row a guard, one column a driver: the least kept, and the gain."""
        labels = [label for label in view.frame.labels() if view.frame.values(KEPT, label)]
        rows: list[tuple[Value | str, ...]] = [
            (guard, *(_cell(view, label, guard) for label in labels)) for guard in view.frame.conditions(KEPT, "guard")
        ]
        if rows:
            columns = (Column("Guard"), *(Column(label, number=True) for label in labels))
            caption = view.words.say("caption.protection")
            yield Table(slug="protection-guards", caption=caption, columns=columns, rows=tuple(rows))


def _cell(view: View, label: str, guard: str) -> Value:
    values = [value for _, value, _ in view.frame.values(KEPT, label, guard=guard)]
    if not values:
        return Value("not measured", absent=True)
    gain = view.evidence.estimate("protection.gain", label, guard=guard).value
    note = "" if gain is None else f"gain {human(gain, '1')}"
    return Value(human(min(values), "1"), exact(min(values)), view.frame.mark(label), note=note)
