"""Parity: what each side was given and saw, side by side, and every limit as the host held it."""

from __future__ import annotations

from collections.abc import Iterator

from reports.page import Column, Part, Table, Value
from reports.sections.base import Section, View


class Parity(Section):
    """Facts from inside an instance of each driver, then the drivers' own facts, then the limits read back."""

    order = 21

    def parts(self, view: View) -> Iterator[Part]:
        """The parity table and the limits table; each says so if nothing was recorded."""
        yield Part(
            slug="parity", heading=view.words.say("section.parity"), tables=(parity_table(view), driver_table(view))
        )
        yield Part(slug="limits", heading=view.words.say("section.limits"), tables=(limits_table(view),))


def parity_table(view: View) -> Table:
    """One row a fact, one column a driver; a fact that a driver did not tell says so."""
    facts = {each.driver: each.facts for each in view.frame.run.facts}
    order = [entry.name for entry in view.frame.run.header.drivers]
    told = {name: facts[name] for name in (*order, *facts) if name in facts}
    names = list(dict.fromkeys(name for seen in told.values() for name in seen))
    rows = [(name, *(seen.get(name) or Value("not told", absent=True) for seen in told.values())) for name in names]
    return Table(
        slug="parity-facts",
        caption="What an instance of each driver saw from inside",
        columns=(Column("Fact"), *(Column(driver) for driver in told)),
        rows=tuple(rows),
        note="" if told else "No instance was described in this run.",
    )


def driver_table(view: View) -> Table:
    """Every driver of the run, whether it worked here and what it told of itself."""
    rows = []
    for entry in view.frame.run.header.drivers:
        facts = ", ".join(f"{key} {value}" for key, value in sorted(entry.facts.items())) or Value(
            "none recorded", absent=True
        )
        state = (
            "works"
            if entry.usable
            else f"does not work here: {entry.reason}" + (f" ({entry.mend})" if entry.mend else "")
        )
        rows.append((entry.name, entry.kind, state, facts))
    columns = (Column("Driver"), Column("Kind"), Column("State"), Column("Facts"))
    return Table(slug="drivers", caption="The drivers of this run", columns=columns, rows=tuple(rows))


def limits_table(view: View) -> Table:
    """Every limit asked for and what the host held."""
    rows = [
        (
            each.driver,
            str(limit.get("name", "")),
            str(limit.get("asked", "")),
            str(limit.get("read", "")),
            _holds(limit.get("holds")),
            str(limit.get("source", "")),
        )
        for each in view.frame.run.facts
        for limit in each.limits
    ]
    columns = tuple(Column(name) for name in ("Driver", "Limit", "Asked", "Read back", "Holds", "Source"))
    note = "" if rows else "No limits were read back in this run."
    return Table(
        slug="limits-read",
        caption="Limits asked for, and as the host holds them",
        columns=columns,
        rows=tuple(rows),
        note=note,
    )


def _holds(value: object) -> Value:
    return Value("yes" if value else "NO", absent=not value)
