"""Namespaces: which kind keeps what is done on one side from the other."""

from __future__ import annotations

from collections.abc import Iterator

from reports.claims import Row
from reports.mechanisms import separated
from reports.page import Column, Figure, Table, Value
from reports.sections.base import ClaimSection, View

METRIC = "namespaces.separated"


class NamespacesSection(ClaimSection):
    """A matrix of kinds and drivers, both ways."""

    claim = "namespaces"
    method = (
        "On one side a process, a socket, a queue, a mount or a user is made; the other side looks for it.",
        "Each is first seen on its own side. What cannot be made without changing the host is a standing fact.",
        "The host sees a container's processes by design: namespaces of processes are nested.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """None: yes and no have no axis."""
        yield from ()

    def tables(self, view: View, row: Row) -> Iterator[Table]:
        """One row a kind and direction, one column a driver."""
        labels = [label for label in view.frame.labels() if view.frame.values(METRIC, label)]
        rows: list[tuple[Value | str, ...]] = []
        for direction in ("inward", "outward"):
            found = {label: separated(view.evidence, METRIC, label, direction) for label in labels}
            rows += [
                (kind, view.words.say(f"answer.{direction}"), *(_cell(found[label].get(kind)) for label in labels))
                for kind in view.frame.conditions(METRIC, "namespace")
            ]
        columns = (Column("Namespace"), Column("Direction"), *(Column(label) for label in labels))
        caption = view.words.say("caption.namespaces")
        if rows:
            yield Table(slug="namespaces-matrix", caption=caption, columns=columns, rows=tuple(rows))


def _cell(apart: bool | None) -> Value:
    return Value("not probed", absent=True) if apart is None else Value("apart" if apart else "seen")
